"""Open a page in the browser: detections on your photos and videos, a data set, its faults and a model's mistakes."""

import argparse
import os
import tempfile

from ..arguments import add_config_file

EPILOG = """examples:
  %(prog)s
  %(prog)s --weights model_best.pth --json val.json --images images/

Whoever reaches the page can use the models of the folders and see the data sets; --host 0.0.0.0 lets others in."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--weights", type=os.path.expanduser, metavar="FILE", help="checkpoint to begin with")
    model.add_argument("--model", type=os.path.expanduser, metavar="FILE", help="exported model to begin with")
    parser.add_argument("--trust", action="store_true", help="load .pt2 files, which may run any code they contain")
    add_config_file(parser, "YAML file or recipe for --weights; default: the config in the checkpoint")
    parser.add_argument(
        "--folder",
        nargs="+",
        type=os.path.expanduser,
        metavar="DIR",
        help="where to look for models (default: here, which includes output/)",
    )
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME", help="registered data sets to show")
    parser.add_argument("--json", type=os.path.expanduser, metavar="FILE", help="COCO annotations to show")
    parser.add_argument("--images", type=os.path.expanduser, metavar="DIR", help="folder of their images")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, default=7860, help="default %(default)s; 0: any free one")
    parser.add_argument("--max-upload-mb", type=int, default=200, help="largest upload (default %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of config keys")


def main(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C; uploads and pictures are in a temporary folder, which is removed at the end."""
    from ..errors import ConfigError

    if bool(args.json) != bool(args.images):
        raise ConfigError(f"--{'json' if args.json else 'images'} needs --{'images' if args.json else 'json'} as well.")
    if args.max_upload_mb < 1:
        raise ConfigError(f"--max-upload-mb is {args.max_upload_mb}; it must be at least 1.")
    for path in filter(None, (args.weights, args.model, args.json)):
        if "://" not in path and not os.path.isfile(path):
            raise ConfigError(f"{path}: no such file.")
    for folder in filter(None, (args.images, *(args.folder or ()))):
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder}: no such folder.")
    with tempfile.TemporaryDirectory(prefix="instseg-ui-") as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False")  # before Gradio is imported
        _serve(args)


def _serve(args: argparse.Namespace) -> None:
    from ..data import register_coco
    from ..engine.log import setup_logging
    from ..errors import ConfigError
    from ..inference.cpu import tune_cpu

    try:
        from ..apps.ui import server
        from ..apps.ui.dataset import DataSet
        from ..apps.ui.models import Models
    except ImportError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ConfigError("`instseg ui` needs Gradio: pip install gradio (Python 3.10 or newer).") from error
    setup_logging()
    tune_cpu()
    folders = args.folder or ["."]
    models = Models(folders, args.weights, args.model, args.trust, args.config_file, args.opts)
    data = [DataSet(name, folders=folders) for name in args.data]
    if args.json:
        register_coco("custom", args.json, args.images)
        data.append(DataSet("custom", os.path.basename(args.json), folders))
    server.serve(server.build(models, data), models, args.host, args.port, args.max_upload_mb)
