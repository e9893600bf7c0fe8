"""The measurements of `gpu.sh`, written as Markdown: ``python -m projects.benchmarks.gpu SECTION...``."""

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from instseg_d2.config import load_config
from instseg_d2.console import run_script
from instseg_d2.data import make_shapes
from instseg_d2.engine import Trainer, argument_parser, setup
from instseg_d2.export import export
from instseg_d2.inference import Predictor
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.inference.precision import autocast_type
from instseg_d2.ops import has_extension
from projects.bench import CONFIGS, random_model, test_size

from .operators import DIRECTIONS, Sizes, cases
from .report import Report, Timer
from .stages import STAGES, StageTimer, training_samples
from .throughput import HEADERS, throughput_rows

LARGE = Sizes(((1, 100, 100), (2, 20, 300), (16, 1600, 1600)), (100, 1000), ((1, 2000), (16, 2000)))
TINY = Sizes(((1, 3, 3),), (3,), ((1, 5),))
QUICK = str(Path(__file__).parents[2] / "configs" / "quick" / "blendmask_shapes.yaml")


def machine(args, report: Report) -> None:
    gpu, driver = "No GPU (dry run)", ""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        if shutil.which(query[0]):
            driver = f", driver {subprocess.run(query, capture_output=True, text=True).stdout.strip()}"
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y %H:%M UTC")
    report.write(f"# {gpu}")
    report.write(
        f"{date}. PyTorch {torch.__version__}, CUDA {torch.version.cuda}{driver}. Operators built for: "
        f"{has_extension() or 'nothing (plain PyTorch)'}. All times are medians in ms."
    )


def operators(args, report: Report) -> None:
    """Operator, reference, and a copy of as many bytes as the operator's arguments and result have."""
    timer = Timer(args.device, 2 if args.dry_run else 20)

    def measure(case):
        result = case.functions[0](**case.inputs)
        tensors = [x for x in (*case.inputs.values(), result) if torch.is_tensor(x)]
        size = sum(x.numel() * x.element_size() for x in tensors)
        source = torch.empty(size // 2, dtype=torch.int8, device=args.device)  # it is read and written
        target = torch.empty_like(source)
        for direction in DIRECTIONS:
            kernel, reference, copy = timer(*case.calls(direction), lambda: target.copy_(source))
            yield case.case, direction, kernel, reference, reference / kernel, size / 2**20, copy, kernel / copy

    headers = ["operator", "case", "direction", "kernel", "reference", "ratio", "MiB", "copy", "kernel / copy"]
    named = ((case.op, case) for case in cases(args.device, TINY if args.dry_run else LARGE))
    report.table(headers, report.each(named, measure))


def _models(args) -> list[tuple]:
    """Names and config files of the methods."""
    return [("BlendMask", QUICK)] if args.dry_run else [(Path(path).stem, path) for path in CONFIGS]


def _stage_table(args, report: Report, forms: Callable) -> None:
    """``forms(optimised model)`` gives (name, model, autocast dtype) of what is timed."""
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(folder, "val", 1, 0)
        drawn = next(x for x in sorted(Path(folder, "images").rglob("*")) if x.suffix in (".jpg", ".png"))
        path = str(Path(folder, "resized.jpg"))

        def measure(config_file):
            cfg, model = random_model(config_file, args.device)
            height, width = (64, 96) if args.dry_run else test_size(cfg)
            cv2.imwrite(path, cv2.resize(cv2.imread(str(drawn)), (width, height)))
            for name, form, autocast in forms(optimize_for_inference(model)):
                timer = StageTimer(form, autocast=autocast)
                for repeats in (1,) if args.dry_run else (3, 5):  # the first three are warm-up
                    timer.seconds = {stage: [] for stage in STAGES}
                    for _ in range(repeats):
                        timer.run(path, (height, width))
                yield f"{height} x {width}", name, *timer.medians()

        report.table(["config", "image", "form", *STAGES, "all"], report.each(_models(args), measure))


def _name(dtype) -> str:
    return str(dtype or torch.float32).replace("torch.", "")


def stages(args, report: Report) -> None:
    """One image through the optimised model, in float32 and in mixed precision."""

    def forms(model):
        for dtype in dict.fromkeys([None, autocast_type(True, model.device)]):
            yield _name(dtype), model, dtype

    _stage_table(args, report, forms)


def compiled(args, report: Report) -> None:
    """The same, with the backbone compiled by torch.compile."""

    def forms(model):
        model.backbone = torch.compile(model.backbone, backend="eager" if args.dry_run else "inductor")
        for dtype in [None] if args.dry_run else [None, torch.float16]:
            yield _name(dtype), model, dtype

    _stage_table(args, report, forms)


def training(args, report: Report) -> None:
    """Forward and backward pass of two images, and the peak memory on top of the weights."""
    timer = Timer(args.device, 1 if args.dry_run else 7)

    def step(model, samples, dtype):
        def run():
            with torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None):
                losses = model(samples)
            sum(losses.values()).backward()
            model.zero_grad()

        if not timer.on_gpu:
            return [*timer(run), "-"]
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        (milliseconds,) = timer(run)
        return [milliseconds, (torch.cuda.max_memory_allocated() - before) / 2**20]

    with tempfile.TemporaryDirectory() as folder:

        def measure(config_file):
            cfg, model = random_model(config_file, args.device)
            samples = training_samples(cfg, folder, 2)
            for dtype in [None] if args.dry_run else [None, torch.float16]:
                yield _name(dtype), *step(model.train(), samples, dtype)

        report.table(["config", "precision", "step", "MiB"], report.each(_models(args), measure))


def learning(args, report: Report) -> None:
    """A short training of the quick BlendMask with the trainer, to see that the loss falls; then prediction."""
    iterations = 2 if args.dry_run else 150
    with tempfile.TemporaryDirectory() as folder:
        json_file = make_shapes(folder, "train", 4 if args.dry_run else 64, 0)
        command = ["--config-file", QUICK, "--num-gpus", "0" if args.dry_run else "1"]
        command += ["--train-json", str(json_file), "--train-images", f"{folder}/images"]
        options = {"OUTPUT_DIR": f"{folder}/out", "DATASETS.TEST": "()", "SOLVER.MAX_ITER": iterations}
        if args.dry_run:
            options.update({"INPUT.MIN_SIZE_TRAIN": "(64,)", "DATALOADER.NUM_WORKERS": 0, "SOLVER.IMS_PER_BATCH": 2})
        command += [str(x) for option in options.items() for x in option]
        trainer = Trainer(setup(argument_parser("").parse_args(command)))
        trainer.resume_or_load(resume=False)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in Path(folder, "out", "metrics.json").read_text().splitlines()]
        predictor = Predictor.from_checkpoint(f"{folder}/out/model_final.pth")
        files = sorted(map(str, Path(folder, "images").iterdir()))
        batches = (1, 2) if args.dry_run else (1, 4, 16)
        throughput = throughput_rows(dict.fromkeys(batches, predictor), files, 0.3, 1 if args.dry_run else 5)
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    row = [iterations, seconds, 1000 * seconds / iterations, losses[0], losses[-1]]
    report.table(["iterations", "seconds", "ms a step, with data", "first loss", "last loss"], [row])
    report.table(["instseg predict, quick BlendMask", *HEADERS[1:]], throughput)


def exported(args, report: Report) -> None:
    """An exported SparseInst in ONNX Runtime and TensorRT, where they are installed. Inputs and outputs are copied."""
    import onnxruntime

    height, width = (64, 96) if args.dry_run else (640, 864)
    cfg = load_config(CONFIGS[2], ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model.onnx"))
        export(Predictor(cfg, ""), "onnx", size=(height, width)).save(path)
        size = torch.tensor([height, width]).numpy()
        values = (torch.zeros((1, 3, height, width), dtype=torch.uint8).numpy(), size, size)

        def onnx_runtime(provider):
            session = onnxruntime.InferenceSession(path, providers=[provider])
            if provider not in session.get_providers():
                raise RuntimeError("is in the package but cannot be loaded")
            feed = {x.name: value for x, value in zip(session.get_inputs(), values)}
            yield Timer("cpu", 2 if args.dry_run else 10)(lambda: session.run(None, feed))

        def trtexec(program):
            command = [program, f"--onnx={path}", "--fp16", "--duration=3"]
            log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            yield [float(re.search(r"Latency:.*median = ([\d.]+) ms", log)[1])]

        providers = [(name, name) for name in onnxruntime.get_available_providers()]
        headers = [f"ONNX Runtime {onnxruntime.__version__}, {height} x {width}", "ms"]
        report.table(headers, report.each(providers, onnx_runtime))
        if shutil.which("trtexec"):
            report.table(["TensorRT", "ms"], report.each([("trtexec, float16", "trtexec")], trtexec))


SECTIONS = {x.__name__: x for x in (machine, operators, stages, training, learning, exported, compiled)}


def main(arguments=None) -> int:
    """Runs the sections; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--output", type=argparse.FileType("a"), default=sys.stdout, help="Markdown file to append to")
    args = parser.parse_args(arguments)
    args.device = "cpu" if args.dry_run else "cuda"
    report = Report(args.output)
    for name in args.sections:
        section = SECTIONS[name]
        if section.__doc__:
            report.write(f"## {name.capitalize()}")
            report.write(section.__doc__)
        try:
            section(args, report)
        except Exception as error:
            report.write(report.failed(error).capitalize())
    return int(report.failures > 0)


if __name__ == "__main__":
    sys.exit(run_script(main))
