#!/usr/bin/env python3
"""
Time every stage of inference and every compiled operator, plain against optimised, in one run. Below each table: the
network's operations, its rate, and the share of what a plain 3x3 convolution of 256 channels reaches beside it.
"""

import argparse
import os
import sys
import tempfile

import cv2
import torch
from tabulate import tabulate

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # projects/ is not installed

import instseg_d2  # noqa: F401 (registers the methods)
from instseg_d2.config import load_config
from instseg_d2.console import run_script
from instseg_d2.data import make_shapes
from instseg_d2.errors import ConfigError
from instseg_d2.inference.cpu import tune_cpu
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.inference.predictor import Predictor
from instseg_d2.modeling.build import build
from instseg_d2.modeling.istr.components import PCA
from projects.benchmarks.operators import format_table, op_table
from projects.benchmarks.runtimes import runtime_rows
from projects.benchmarks.stages import (
    conversion_row,
    large_image_row,
    plain_module,
    stage_rows,
    training_row,
    training_samples,
)

CONFIGS = [
    os.path.join(os.path.dirname(__file__), os.pardir, "configs", *name)
    for name in (
        ("FCOS", "R_50_1x.yaml"),
        ("BlendMask", "R_50_1x.yaml"),
        ("SparseInst", "sparse_inst_r50_giam.yaml"),
        ("EmbedMask", "v3_R_50_1x.yaml"),
        ("InstanceFCN", "VGG16_k5.yaml"),
        ("ISTR", "ISTR-R50-3x.yaml"),
    )
]
BATCH = 2  # images of the timed training step


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", nargs="+", default=CONFIGS, help="configs to time, with random weights")
    parser.add_argument("--image", type=os.path.expanduser, help="an image file; default: a generated one")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="network input; default: the config's test size, 3 : 4"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=20, help="to convert to COCO results (default %(default)s)")
    parser.add_argument(
        "--large-image", action="store_true", help="also memory of 300 detections on 12 megapixels, CPU"
    )
    parser.add_argument(
        "--runtimes", action="store_true", help="only time PyTorch against the exported files, on the CPU"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def random_model(config_file: str, device: str):
    """
    The config and its model, with random weights that detect as many objects as allowed. ISTR's boxes start at random
    places and change little; otherwise they would soon leave the image, where they cost less. Its mask embedding is
    random, too, because there are no masks to fit it to.
    """
    torch.manual_seed(0)
    cfg = load_config(config_file, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "MODEL.BASIS_MODULE.NORM", "BN"])
    model = build(cfg).eval()
    for name, module in model.named_modules():
        if name.endswith("class_logits"):
            torch.nn.init.constant_(module.bias, -2.0)
        elif name.endswith("box_deltas"):
            torch.nn.init.normal_(module.weight, std=0.01)
        elif name.endswith("initial_boxes"):
            torch.nn.init.uniform_(module.weight, 0.1, 0.9)
        elif isinstance(module, PCA):
            torch.nn.init.orthogonal_(module.components)
    return cfg, model


def test_size(cfg) -> tuple:
    """(H, W) of a 3 : 4 image resized as at test time; 375 pixels high, as in VOC, if the config does not resize."""
    height = cfg.INPUT.MIN_SIZE_TEST or 375
    return height, min(cfg.INPUT.MAX_SIZE_TEST, round(height * 4 / 3))


def main(args) -> None:
    if min(args.repeats, args.images, *(args.size or ())) < 1:
        raise ConfigError("--repeats, --images and both sides of --size must be at least 1")
    tune_cpu()
    print(f"{torch.get_num_threads()} threads, {args.device}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        image = args.image
        if image is None:
            make_shapes(folder, "val", 1, 0)
            image = next(
                os.path.join(top, f) for top, _, files in os.walk(folder) for f in files if f[-3:] in ("jpg", "png")
            )
        for config_file in args.config_file:
            cfg, model = random_model(config_file, "cpu" if args.runtimes else args.device)
            size = tuple(args.size or test_size(cfg))
            resized = os.path.join(folder, "image.jpg")
            cv2.imwrite(resized, cv2.resize(cv2.imread(image), size[::-1]))
            if args.runtimes:
                predictor = Predictor(cfg, "", optimize=False)
                predictor.model = optimize_for_inference(model)
                rows = runtime_rows(predictor, resized, tuple(-(-side // 32) * 32 for side in size), args.repeats)
                print(f"\n{os.path.basename(config_file)}, one {size[0]} x {size[1]} image, random weights")
                print(tabulate(rows, headers=("runtime", "ms", "speed", "MB"), floatfmt=".2f"))
                continue
            headers, rows, rates = stage_rows(model, resized, size, args.repeats)
            print(f"\n{os.path.basename(config_file)}, one {size[0]} x {size[1]} image, random weights")
            print(tabulate(rows, headers=headers, floatfmt=".2f"))
            print(rates)
            if args.large_image:
                found, peak, seconds = large_image_row(model)
                print(
                    f"{found} detections on 3000 x 4000 pixels to run lengths: peak {peak / 2**20:.0f} MiB, "
                    f"{seconds:.1f} s"
                )
            if hasattr(plain_module(model), "plain_losses"):
                plain_ms, own_ms, ratio = training_row(model, training_samples(cfg, folder, BATCH), args.repeats)
                print(
                    f"training step, {BATCH} images: plain {plain_ms:.0f} ms, optimised {own_ms:.0f} ms, {ratio:.2f}x"
                )
    if args.runtimes:
        return
    plain_ms, own_ms, ratio = conversion_row(args.images)
    print(
        f"\n{args.images} images of 480 x 640 with 100 masks each to COCO results: "
        f"Detectron2 {plain_ms:.1f} ms per image, instseg_d2 {own_ms:.1f} ms, {ratio:.1f}x\n"
    )
    print(format_table(op_table(repeats=args.repeats * 3, device=args.device)))


if __name__ == "__main__":
    sys.exit(run_script(main, parse()))
