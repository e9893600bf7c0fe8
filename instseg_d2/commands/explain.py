"""Detect instances in images or a video, and draw what the network sees in every image."""

import argparse

from . import predict

EPILOG = "Example: %(prog)s --weights model_best.pth --input photos/ --output output/explained"

main = predict.main


def add_arguments(parser: argparse.ArgumentParser) -> None:
    predict.add_shared_arguments(parser)
    others = argparse.ArgumentParser()
    predict.add_own_arguments(others)
    parser.set_defaults(**{**vars(others.parse_args([])), "explain": True})
