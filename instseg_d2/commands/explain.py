"""Detect instances in images or a video, and draw what the network sees in every image."""

import argparse

from . import predict

EPILOG = "Example: %(prog)s --weights model_best.pth --input photos/ --output output/explained"

main = predict.main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    predict.add_shared_arguments(parser)
    parser.set_defaults(explain=True, no_pictures=False, tile=None, overlap=None, track=False, every=1)
