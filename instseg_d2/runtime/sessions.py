"""Opens exported files in their runtimes. N images, D detections an image."""

import importlib.util
import json
import os
import queue
from collections.abc import Callable, Mapping
from typing import Optional

import numpy as np

from ..errors import ConfigError

__all__ = ["INPUTS", "METADATA", "SESSIONS", "VERSION", "first_line", "needed", "open_session", "run"]

INPUTS = ("images", "image_size", "output_size")
VERSION = 2  # of the metadata
METADATA = "instseg_d2.json"  # name of the metadata inside the files


def needed(what: str, extra: str, *names: str) -> None:
    """
    Raises:
        ConfigError: a package is not installed; the message says how to get it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        packages = "package" if len(missing) == 1 else "packages"
        raise ConfigError(
            f"{what} need the {packages} {', '.join(missing)}: pip install 'instseg_d2[{extra}]', or the lines of "
            "requirements.txt."
        )


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if there is no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class OnnxSession:
    """An .onnx file in ONNX Runtime, on the GPU if possible."""

    runtime = "ONNX Runtime"

    def __init__(self, path: str, threads: Optional[int] = None, parallel: int = 1):
        needed("ONNX files", "export", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = max(1, threads // parallel)
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.on_cpu = self._session.get_providers()[0] == "CPUExecutionProvider"
        self._names = [x.name for x in self._session.get_outputs()]
        self.text = self._session.get_modelmeta().custom_metadata_map.get(METADATA, "")

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, self._session.run(None, inputs)))


class OpenVinoSession:
    """An .xml file in OpenVINO, on the CPU, in the precision that it was written in."""

    runtime = "OpenVINO"
    on_cpu = True

    def __init__(self, path: str, threads: Optional[int] = None, parallel: int = 1):
        needed("OpenVINO files", "openvino", "openvino")
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        self.text = model.get_rt_info(["instseg_d2"]).value if model.has_rt_info(["instseg_d2"]) else ""
        # On some CPUs the plugin would choose half precision by itself.
        options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if parallel > 1:
            options["NUM_STREAMS"] = parallel
        self._model = core.compile_model(model, "CPU", options)
        self._requests = queue.SimpleQueue()  # a request serves one call at a time
        for _ in range(parallel):
            self._requests.put(self._model.create_infer_request())

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = self._requests.get()
        try:
            return {port.get_any_name(): np.array(value) for port, value in request.infer(inputs).items()}
        finally:
            self._requests.put(request)


SESSIONS = {".onnx": OnnxSession, ".xml": OpenVinoSession}


def open_session(
    path: str,
    threads: Optional[int] = None,
    parallel: int = 1,
    *,
    kinds: Mapping[str, Callable] = SESSIONS,
    other_format: Callable[[str], Optional[str]] = lambda path: None,
):
    """
    Open an exported file: (session, metadata). A session takes and returns dicts of arrays.

    Args:
        threads: of the CPU, all together; None: the runtime's choice.
        parallel: number of calls at the same time, each from a thread of its own.
        kinds: suffix -> session, called with path, threads and parallel.
        other_format: says what a file is that no session can read, or None.

    Raises:
        FileNotFoundError: the file is missing.
        ConfigError: it is of another kind or damaged, or a package is missing.
    """
    kind = kinds.get(os.path.splitext(path)[1].lower())
    if kind is None:
        *first, last = kinds
        raise ConfigError(f"{path}: an exported model is a file of {', '.join(first)} or {last}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        session = kind(path, threads, parallel)
    except ConfigError:
        raise
    except Exception as error:  # the runtimes raise all kinds
        what = other_format(path) or f"damaged, or was not exported here ({first_line(error)})"
        raise ConfigError(f"{path} is {what}.") from error
    if not session.text:
        raise ConfigError(f"{path}: carries no metadata of instseg_d2; export it with `instseg export`.")
    metadata = json.loads(session.text)
    if metadata.get("version", 1) > VERSION:
        raise ConfigError(f"{path} was exported by a newer instseg_d2: update this one, or export the file again.")
    return session, metadata


def run(session, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    The outputs of a session.

    Raises:
        ConfigError: the runtime refuses, for example because its memory does not suffice.
    """
    try:
        return session(inputs)
    except Exception as error:  # the runtimes raise all kinds
        count, _, height, width = inputs["images"].shape
        raise ConfigError(
            f"{session.runtime} cannot run this file on {count} images of {height} x {width} pixels: "
            f"{first_line(error)}"
        ) from error
