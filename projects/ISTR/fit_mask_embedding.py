#!/usr/bin/env python3
"""
Fit ISTR's mask embedding to a COCO-format training set, and measure and draw how well its codes represent masks.

    python projects/ISTR/fit_mask_embedding.py --json train.json --images images/ --method pca --output masks.npz
    python projects/ISTR/fit_mask_embedding.py --dataset coco_2017_train --method ae --output masks.pth
    python projects/ISTR/fit_mask_embedding.py --dataset NAME --method pca --table 20 40 60 80 100

Set MODEL.ISTR.PATH_COMPONENTS to the file. Without it, training fits an embedding when it starts.
"""

import argparse
import itertools
import os
import sys

import torch
from detectron2.data import DatasetCatalog
from pictures import draw_reconstructions, plot_components, save_picture
from tabulate import tabulate

from instseg_d2.console import run_script
from instseg_d2.data import register_coco
from instseg_d2.data.training_masks import TrainingMasks
from instseg_d2.engine.log import setup_logging
from instseg_d2.errors import ConfigError
from instseg_d2.inference.cpu import keep_freed_memory
from instseg_d2.modeling.istr import AE, DCT, PCA, fit_embedding, held_out_split, reconstruction_ious


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="a registered data set")
    parser.add_argument("--json", type=os.path.expanduser, help="instead: COCO annotations")
    parser.add_argument("--images", type=os.path.expanduser, help="folder of their images")
    parser.add_argument("--val-dataset", help="data set to measure on; default: every tenth image, not used in the fit")
    parser.add_argument("--method", choices=("pca", "ae", "dct"), default="pca", help="dct needs no fit, only measures")
    parser.add_argument("--size", type=int, help="side of the masks; default: 28 for pca, else 112")
    parser.add_argument("--dim", type=int, help="length of a code; default: 60 for masks of 28 x 28, else 256")
    parser.add_argument("--max-masks", type=int, default=0, help="fit to this many random masks; default: all")
    parser.add_argument("--epochs", type=int, default=30, help="for ae (default %(default)s)")
    parser.add_argument("--table", type=int, nargs="+", default=[], metavar="N", help="mean IoU with N components")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--output", type=os.path.expanduser, help="default: output/mask_embedding_<method>_<size>.npz, .pth for ae"
    )
    return parser.parse_args(arguments)


def load(args):
    """The records to fit to, and those to measure on."""
    if bool(args.dataset) == bool(args.json) or bool(args.json) != bool(args.images):
        raise ConfigError("give either --dataset NAME, or --json FILE and --images DIR.")
    if args.json:
        register_coco("custom_masks", args.json, args.images)
    records = DatasetCatalog.get(args.dataset or "custom_masks")
    return (records, DatasetCatalog.get(args.val_dataset)) if args.val_dataset else held_out_split(records)


def main(args) -> None:
    setup_logging()
    keep_freed_memory()
    size = args.size or (28 if args.method == "pca" else 112)
    dim = max([args.dim or (60 if size == 28 else 256), *args.table])
    path = args.output or f"output/mask_embedding_{args.method}_{size}.{'pth' if args.method == 'ae' else 'npz'}"
    if args.method == "ae" and args.table:
        raise ConfigError("--table shortens codes, which only --method pca and dct allow.")
    train, held_out = load(args)
    embedding = {"pca": PCA, "dct": DCT, "ae": AE}[args.method](dim=dim, size=size).to(args.device)
    if args.method != "dct":
        settings = {"epochs": args.epochs} if args.method == "ae" else {}
        fit_embedding(embedding, TrainingMasks(train, size, max_masks=args.max_masks), **settings)
        embedding.save_file(path)
        print(f"Wrote {path}.")
    if args.method == "pca":
        print(f"Explained variance of {dim} components: {embedding.explained_ratio.sum():.3f}")
    components, curves = args.table or [dim], {}
    for title, min_area in (("all", 0), ("over 32^2 pixels", 32**2)):
        ious = reconstruction_ious(embedding, TrainingMasks(held_out, size, min_area=min_area), components)
        curves[f"{title} ({len(ious)} masks)"] = ious.mean(0).tolist()
    rows = [[count, *values] for count, *values in zip(components, *curves.values())]
    print(tabulate(rows, headers=["components", *(f"mIoU, {title}" for title in curves)], floatfmt=".3f"))
    stem = os.path.splitext(path)[0]
    if args.table:
        plot_components(f"{stem}_components.png", components, curves)
    for masks in itertools.islice(TrainingMasks(held_out, size, max_masks=16), 1):
        save_picture(f"{stem}_masks.png", draw_reconstructions(embedding, torch.from_numpy(masks).to(args.device)))
    print(f"Pictures: {stem}_*.png")


if __name__ == "__main__":
    sys.exit(run_script(main, parse()))
