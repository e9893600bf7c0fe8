#!/usr/bin/env python3
"""Time every stage of inference and every compiled operator, plain against optimised in one run."""

import argparse
import os
import sys
import tempfile

import cv2
import torch
from detectron2.modeling import build_model
from tabulate import tabulate

import instseg_d2  # noqa: F401 (registers the methods)
from instseg_d2.config import load_config
from instseg_d2.data.shapes import make_shapes
from instseg_d2.engine import run_script
from instseg_d2.engine.benchmark import stage_rows
from instseg_d2.ops.benchmark import format_table, op_table

CONFIG = os.path.join(os.path.dirname(__file__), os.pardir, "configs", "BlendMask", "R_50_1x.yaml")


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=CONFIG, help="a BlendMask config; its weights are drawn at random")
    parser.add_argument("--image", help="an image file; default: a generated one")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1088), metavar=("H", "W"), help="network input")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def random_model(config_file: str, device: str):
    """The config's model with random weights, eager enough to find 100 objects."""
    torch.manual_seed(0)
    cfg = load_config(config_file, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", device, "MODEL.BASIS_MODULE.NORM", "BN"])
    model = build_model(cfg).eval()
    torch.nn.init.constant_(model.proposal_generator.head.class_logits.bias, -2.0)
    return model


def main(args) -> None:
    print(f"{torch.get_num_threads()} threads, {args.device}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        image = args.image
        if image is None:
            make_shapes(folder, "val", 1, 0)
            generated = next(
                os.path.join(top, f) for top, _, files in os.walk(folder) for f in files if f[-3:] in ("jpg", "png")
            )
            image = os.path.join(folder, "image.jpg")
            cv2.imwrite(image, cv2.resize(cv2.imread(generated), (args.size[1], args.size[0])))
        rows = stage_rows(random_model(args.config_file, args.device), image, tuple(args.size), args.repeats)
    print(f"\n{os.path.basename(args.config_file)}, one {args.size[0]} x {args.size[1]} image, random weights")
    print(tabulate(rows, headers=["stage", "plain ms", "optimised ms", "ratio"], floatfmt=".2f"))
    print()
    print(format_table(op_table(repeats=args.repeats * 3, device=args.device)))


if __name__ == "__main__":
    sys.exit(run_script(main, parse()))
