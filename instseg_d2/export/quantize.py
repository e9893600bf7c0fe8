"""
8-bit models: static quantisation by ONNX Runtime, as QuantizeLinear and DequantizeLinear nodes. OpenVINO reads these,
too.

Activations are unsigned and have one range each, weights are signed and have one for each output channel. What is not
named stays float32: the selection of boxes, scores, and whatever is done to masks.
"""

import ast
import logging
import os
import tempfile
from collections.abc import Iterable, Sequence

import numpy as np

from ..runtime.sessions import needed

__all__ = ["quantized"]

_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _modules(node) -> list[str]:
    """The paths of the modules, outermost first, whose code made a node."""
    text = {x.key: x.value for x in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "[]")
    return ast.literal_eval(text)


def _within(node, modules: Sequence[str]) -> bool:
    paths = [path.removeprefix("model.") for path in _modules(node)]
    return any(path in modules for path in paths)


def _separate_biases(graph) -> None:
    """Give every layer a bias of its own, because the scale of an 8-bit layer's bias depends on the layer's input."""
    values = {x.name: x for x in graph.initializer}
    seen = set()
    for node in graph.node:
        if node.op_type not in _TYPES or len(node.input) < 3 or node.input[2] not in values:
            continue
        name = node.input[2]
        if name in seen:
            copy = graph.initializer.add()
            copy.CopyFrom(values[name])
            copy.name = f"{name}.{node.name}"
            node.input[2] = copy.name
        seen.add(name)


def quantized(proto, modules: Sequence[str], inputs: Iterable[dict[str, np.ndarray]]):
    """
    An ONNX model with 8-bit layers.

    Args:
        proto: an onnx.ModelProto written by `torch.onnx.export`; its biases are changed in place.
        modules: paths in the exported model; the convolutions and linear layers inside these get 8 bits.
        inputs: inputs of the model, from which the ranges of the activations are measured.

    Raises:
        ConfigError: a package is missing.
        ValueError: no layer lies in these modules.
    """
    needed("8-bit files", "export", "onnx", "onnxscript", "onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.inputs = iter(inputs)

        def get_next(self):
            return next(self.inputs, None)

    constants = {x.name for x in proto.graph.initializer}
    nodes = [x for x in proto.graph.node if x.op_type in _TYPES and _within(x, modules) and x.input[1] in constants]
    if not nodes:
        raise ValueError(f"the graph has no convolution or linear layer in {', '.join(modules)}")
    _separate_biases(proto.graph)
    with tempfile.TemporaryDirectory() as folder:
        before, after = (os.path.join(folder, name) for name in ("float.onnx", "eight_bits.onnx"))
        onnx.save(proto, before)
        logging.disable(logging.WARNING)  # it advises a pass that PyTorch's exporter has made
        try:
            quantize_static(
                before,
                after,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_TYPES),
                nodes_to_quantize=[x.name for x in nodes],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(after)
