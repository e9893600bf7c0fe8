"""``python -m instseg_d2.zoo``: every recipe, its size, what its authors published and where their weights are."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from tabulate import tabulate

from .console import run_script
from .methods import Publication, methods

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


class Entry(NamedTuple):
    """A recipe: mask and box AP as published, in percent; None where nothing is."""

    config: str  # below configs/, without .yaml
    parameters: float  # of the built model, millions, frozen ones and those used in training alone included
    val: tuple[Optional[float], Optional[float]] = (None, None)  # COCO val2017
    test_dev: tuple[Optional[float], Optional[float]] = (None, None)  # COCO test-dev
    other: str = ""
    fps: str = ""


ENTRIES = (
    Entry("BlendMask/R_50_1x", 36.0, (35.8, 39.9)),
    Entry("BlendMask/R_50_3x", 36.0, (37.8, 42.7)),
    Entry("BlendMask/R_101_3x", 54.9, (39.5, 44.8)),
    Entry("BlendMask/R_101_dcni3_5x", 55.6, (41.1, 46.8)),
    Entry("BlendMask/550_R_50_1x", 32.3),
    Entry("BlendMask/550_R_50_3x", 32.3, (34.5, 38.7)),
    Entry("BlendMask/550_R_50_dcni3_5x", 32.6),
    Entry("BlendMask/RT_R_50_4x_syncbn_shtw", 31.8, (35.1, 39.3)),
    Entry("BlendMask/RT_R_50_4x_bn-head_syncbn_shtw", 31.8, (35.1, 39.3)),
    Entry("BlendMask/DLA_34_syncbn_4x", 25.9, (36.3, 40.8)),
    Entry("BlendMask/Panoptic/R_50_1x", 38.3),
    Entry("BlendMask/Panoptic/R_50_3x", 38.3, other="PQ 42.5"),
    Entry("BlendMask/Panoptic/R_101_3x", 57.2, other="PQ 44.3"),
    Entry("BlendMask/Panoptic/R_101_dcni3_5x", 57.9, other="PQ 46.0"),
    Entry("FCOS/R_50_1x", 32.2, (None, 38.7)),
    Entry("EmbedMask/v1_R_50_1x", 34.8),
    Entry("EmbedMask/v1_R_101_1x", 53.7),
    Entry("EmbedMask/v1_R_101_ms_3x", 53.7),
    Entry("EmbedMask/v2_R_50_1x", 34.6, test_dev=(34.7, None)),
    Entry("EmbedMask/v2_R_101_1x", 53.6, test_dev=(36.4, None)),
    Entry("EmbedMask/v2_R_101_ms_3x", 53.6, test_dev=(38.1, None)),
    Entry("EmbedMask/v3_R_50_1x", 34.7),
    Entry("EmbedMask/v3_R_101_ms_3x", 53.7),
    Entry("SparseInst/sparse_inst_r50_base", 31.6, (32.8, None), (33.2, None), fps="44.3 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r50_giam", 32.8, (33.4, None), (34.0, None), fps="44.6 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r50_giam_fp16", 32.8, fps="68, in float32 52 (RTX 3090)"),
    Entry("SparseInst/sparse_inst_r50_giam_soft", 32.8, (33.6, None), fps="44.6 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r50_giam_aug", 32.8, (34.2, None), (34.7, None), fps="44.6 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r50_dcn_giam_aug", 33.3, (36.4, None), (36.8, None), fps="41.6 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r50vd_giam_aug", 32.8, (35.6, None), (36.1, None), fps="42.8 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r50vd_dcn_giam_aug", 33.3, (37.4, None), (37.9, None), fps="40.0 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_r101_giam", 51.7, (34.9, None), (35.5, None)),
    Entry("SparseInst/sparse_inst_r101_dcn_giam", 52.9, (36.4, None), (36.9, None)),
    Entry("SparseInst/sparse_inst_cspdarknet53_giam", 35.5, (35.1, None)),
    Entry("SparseInst/sparse_inst_darknet53_giam", 49.5),
    Entry("SparseInst/sparse_inst_pvt_b1_giam", 22.2, (35.3, None), (36.0, None), fps="33.5 (2080 Ti)"),
    Entry("SparseInst/sparse_inst_pvt_b2_li_giam", 30.7, (37.2, None), (38.2, None), fps="26.5 (2080 Ti)"),
    Entry("ISTR/ISTR-R50-3x", 108.4, test_dev=(38.6, 46.8), fps="17.8 (2080 Ti)"),
    Entry("ISTR/ISTR-R101-3x", 127.3, test_dev=(39.9, 48.1), fps="13.9 (2080 Ti)"),
    Entry("ISTR/ISTR-PCA-R50-3x", 138.9, test_dev=(39.8, 46.7), fps="13.0 (2080 Ti)"),
    Entry("ISTR/ISTR-PCA-R101-3x", 157.9, test_dev=(41.1, 48.0), fps="10.7 (2080 Ti)"),
    Entry("ISTR/ISTR-DCT-R50-3x", 138.9, test_dev=(40.2, 46.9), fps="12.5 (2080 Ti)"),
    Entry("ISTR/ISTR-DCT-R101-3x", 157.9, test_dev=(41.6, 48.3), fps="10.3 (2080 Ti)"),
    Entry("ISTR/ISTR-AE-R50-3x", 143.7, test_dev=(41.7, 47.4), fps="10.4 (2080 Ti)"),
    Entry("ISTR/ISTR-AE-R101-3x", 162.6, test_dev=(42.9, 48.8), fps="8.9 (2080 Ti)"),
    Entry("ISTR/ISTR-AE-SwinL-3x", 315.2, test_dev=(49.2, 55.8), fps="3.5 (2080 Ti)"),
    Entry("ISTR/ISTR-AE-SwinL-LSJ-3x", 315.2),
    Entry("ISTR/ISTR-AE-R50-Cityscapes", 143.6),
    Entry("InstanceFCN/VGG16_k3", 17.4, other="VOC 2012 AR 38.3, 49.2, 52.1"),
    Entry("InstanceFCN/VGG16_k5", 17.5, other="VOC 2012 AR 38.9, 49.7, 52.6"),
    Entry("InstanceFCN/VGG16_k7", 17.6, other="VOC 2012 AR 38.8, 49.7, 52.7"),
    Entry("InstanceFCN/VGG16_k5_coco", 17.5, other="COCO val2014 AR 16.6, 31.7, 39.2"),
    Entry("InstanceFCN/VGG16_k5_classified", 137.4, other="VOC 2012 mask AP50 61.5, AP70 43.0 (classifier of MNC)"),
    Entry("InstanceFCN/R_50_k5", 34.1),
    Entry("MaskRCNN-heads/blend_mask_rcnn_R_50_FPN_1x", 43.2),
    Entry("MaskRCNN-heads/blend_fcos_mask_rcnn_R_50_FPN_1x", 48.7),
    Entry("MaskRCNN-heads/blend_cascade_mask_rcnn_R_50_FPN_1x", 70.8),
    Entry("MaskRCNN-heads/embed_mask_rcnn_R_50_FPN_1x", 48.1),
    Entry("MaskRCNN-heads/assemble_mask_rcnn_R_50_FPN_1x", 44.1),
    Entry("MaskRCNN-heads/mask_embedding_rcnn_R_50_FPN_1x", 47.0),
    Entry("MaskRCNN-heads/istr_rcnn_R_50_FPN_1x", 138.9),
    Entry("MaskRCNN-heads/sparse_inst_rcnn_R_50_1x", 32.8),
)


def publications() -> dict[str, Publication]:
    """Where the recipes of each folder of configs/ come from."""
    heads = Publication("MaskRCNN-heads", "recipes of this package", "none")
    return {x.folder: x for x in (*(method.publication for method in methods()), heads) if x is not None}


def folder_of(entry: Entry) -> str:
    """The folder of configs/ that the recipe lies in."""
    return entry.config.split("/")[0]


def count(entry: Entry, configs: Path = CONFIGS) -> float:
    """Millions of parameters of the recipe's model, built without memory for them."""
    import torch
    from detectron2.modeling import build_model

    from .apps.costs import count_parameters
    from .config import load_config

    cfg = load_config(str(configs / f"{entry.config}.yaml"), ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    with torch.device("meta"):
        return count_parameters(build_model(cfg)) / 1e6


def _pair(values: Sequence[Optional[float]]) -> str:
    return "" if values == (None, None) else " / ".join("-" if value is None else f"{value:.1f}" for value in values)


def table(entries: Sequence[Entry]) -> str:
    """Recipes in lines of Markdown, below them what holds for their methods."""
    rows = [
        {
            "config": entry.config,
            "parameters, M": entry.parameters,
            "val2017 mask / box AP": _pair(entry.val),
            "test-dev mask / box AP": _pair(entry.test_dev),
            "other": entry.other,
            "FPS": entry.fps,
        }
        for entry in entries
    ]
    lines = [tabulate(rows, headers="keys", floatfmt=".1f", tablefmt="pipe", disable_numparse=[2, 3, 4, 5]), ""]
    lines.append("Published by the authors, in percent and on their machines; empty: nothing is. Their weights:")
    known = publications()
    for folder in dict.fromkeys(map(folder_of, entries)):
        source = known[folder]
        lines.append(f"* {folder} ({source.paper}): {source.weights}. {source.note}".rstrip())
    return "\n".join(lines)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m instseg_d2.zoo", description=__doc__.split(": ", 1)[1])
    known = {folder.lower(): folder for folder in publications()}
    parser.add_argument(
        "--method", nargs="+", type=str.lower, choices=list(known), metavar="NAME", help=", ".join(known.values())
    )
    parser.add_argument("--count", action="store_true", help="build every model and count its parameters anew")
    args = parser.parse_args(arguments)
    wanted = {known[name] for name in args.method or known}
    entries = [entry for entry in ENTRIES if folder_of(entry) in wanted]
    if args.count:
        entries = [entry._replace(parameters=count(entry)) for entry in entries]
    sys.stdout.write(table(entries) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
