#!/usr/bin/env python3
"""
Convert PASCAL VOC 2012 and SBD to the data sets voc_2012_train (10,582 images) and voc_2012_val (1,449 images).

    python projects/InstanceFCN/prepare_voc.py --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset
    export INSTSEG_DATASETS=datasets

VOC 2012: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (VOCtrainval_11-May-2012.tar). SBD: the Semantic Boundaries
Dataset of Hariharan et al., ICCV 2011 (benchmark.tgz). Without --sbd the training set is VOC's own 1,464 images.
"""

import argparse
import os
import sys

from instseg_d2.console import run_script
from instseg_d2.data.voc import prepare_voc


def main(args: argparse.Namespace) -> None:
    for split, (path, images, objects) in prepare_voc(args.voc, args.sbd, args.output).items():
        print(f"{path}: {images} images, {objects} objects ({os.path.basename(args.output)}_{split})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=os.path.expanduser, required=True, help="the folder VOCdevkit/VOC2012")
    parser.add_argument("--sbd", type=os.path.expanduser, help="the folder benchmark_RELEASE/dataset")
    default = os.path.join(os.environ.get("INSTSEG_DATASETS") or "datasets", "voc_2012")
    parser.add_argument(
        "--output", type=os.path.expanduser, default=default, help="folder to write to (default: %(default)s)"
    )
    sys.exit(run_script(main, parser.parse_args()))
