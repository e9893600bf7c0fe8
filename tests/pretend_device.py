"""
A device that is not the CPU, on any machine: "pretend:0".

Its tensors hold CPU tensors. `PretendDevice` computes on these and behaves as CUDA does: tensors of two devices do not
meet, and a generator of the CPU draws no numbers here. It notes each place where the host waits for the device, as a
GPU's queue of work runs empty there. The operators of the package take their CPU kernels. `Tensor.is_cuda` is True, so
that the branches for a GPU are taken; where code asks for ``device.type == "cuda"``, they are not.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from torch.utils import backend_registration

    _setup = backend_registration._setup_privateuseone_for_python_backend
except AttributeError:
    pytest.skip("this PyTorch has no backends in Python", allow_module_level=True)

DEVICE = torch.device("privateuseone:0")
aten = torch.ops.aten
_COPIES = (aten._to_copy.default, aten.copy_.default)
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)  # such as item, nonzero, masked_select
_PLACES = ("instseg_d2", "detectron2", "torchvision", "fvcore")


class _Module(backend_registration._DummyBackendModule):
    """What PyTorch wants to know of a device; autocast asks for the types even if it is off."""

    def get_amp_supported_dtype(self):
        return [torch.float16, torch.bfloat16]


_setup("pretend", backend_module=_Module())
_library = torch.library.Library("aten", "IMPL")


class PretendTensor(torch.Tensor):
    """A tensor on the device; ``inner`` has its values."""

    is_cuda = True
    _is_param = False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **layout, device=DEVICE)
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a tensor on the pretend device outside `with PretendDevice()`")

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone()
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if self._is_param else copied
        return memo[id(self)]

    def __repr__(self):
        return f"PretendTensor({self.inner!r})"


@dataclass
class Notes:
    """
    Where the host waited, as the operator and the lines of code that led to it.

    Attributes:
        reads: copies of values or sizes to the host.
        uploads: copies to the device that are not ``non_blocking``.
    """

    reads: list = field(default_factory=list)
    uploads: list = field(default_factory=list)


class PretendDevice(TorchDispatchMode):
    """Inside the block "pretend" is a device."""

    active: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.notes = Notes()

    def __enter__(self):
        PretendDevice.active.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        PretendDevice.active.pop()
        return super().__exit__(*error)

    @contextmanager
    def noting(self):
        """The `Notes` of a block."""
        before, self.notes = self.notes, Notes()
        yield self.notes
        self.notes = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((args, *kwargs.values())))
        own = [isinstance(x, PretendTensor) for x in tensors]
        target = kwargs.get("device")
        here = target is not None and torch.device(target).type == "pretend"
        if not here and not any(own):
            return func(*args, **kwargs)
        if here:
            kwargs["device"] = "cpu"
        assert kwargs.get("generator") is None, f"{func}: a generator of the CPU draws no numbers on the device"
        to_host = False
        if func in _COPIES:
            to_host = own[0] and target is not None and not here if func is _COPIES[0] else not own[0]
            if to_host:
                self._note(self.notes.reads, func)
            elif not all(own) and not (kwargs.get("non_blocking") or True in args[2:]):
                self._note(self.notes.uploads, func)
        else:
            self._require_one_device(func, args, tensors)
            if self._reads(func, args, kwargs):
                self._note(self.notes.reads, func)
        found = func(*_changed(args, PretendTensor, _inner), **_changed(kwargs, PretendTensor, _inner))
        if torch.Tag.inplace_view in func.tags:  # the shape of the tensor itself, too
            with torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        schema = func._schema.arguments
        written = [x.name for x in schema if x.alias_info is not None and x.alias_info.is_write]
        if written:
            given = {**dict(zip((x.name for x in schema), args)), **kwargs}
            return given[written[0]] if func._schema.returns else None
        return found if to_host else _changed(found, torch.Tensor, PretendTensor)

    def _require_one_device(self, func, args, tensors) -> None:
        """As CUDA: numbers may come from the host in elementwise operators and assignments, indices are copied."""
        for x in tensors:
            number = x.dim() == 0 and (torch.Tag.pointwise in func.tags or func in _INDEXED)
            if isinstance(x, PretendTensor) or number:
                continue
            if func in _INDEXED and any(x is index for index in args[1]):
                self._note(self.notes.uploads, func)
                continue
            raise RuntimeError(f"{func} mixes a tensor {tuple(x.shape)} of the CPU with tensors of the device")

    @staticmethod
    def _reads(func, args, kwargs) -> bool:
        if func in _INDEXED:
            masks = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
            return masks and (func is aten.index.Tensor or args[2].numel() != 1)  # one value: masked_fill
        if func is aten.repeat_interleave.Tensor:
            return kwargs.get("output_size") is None
        if func._schema.name == "instseg_d2::mask_prob":
            return args[3] is not None  # only with windows
        return func._schema.name == "torchvision::nms" or any(tag in func.tags for tag in _TAGS)

    @staticmethod
    def _note(notes: list, func) -> None:
        lines, frame = [], sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            place = next((name for name in _PLACES if name in path.parts), None)
            if place and "tests" not in path.parts:
                parts = path.parts[len(path.parts) - path.parts[::-1].index(place) - 1 :]
                lines.append(f"{'/'.join(parts)}:{frame.f_lineno}")
            frame = frame.f_back
        notes.append(f"{func} " + (" < ".join(lines[:4]) or "(backward)"))


def _tensors(values):
    for x in values:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (list, tuple)):
            yield from _tensors(x)


def _changed(values, kind, change):
    """The values with ``change(x)`` in place of each x of a kind, also inside lists."""
    if isinstance(values, kind):
        return change(values)
    if isinstance(values, dict):
        return {key: _changed(x, kind, change) for key, x in values.items()}
    return type(values)(_changed(x, kind, change) for x in values) if isinstance(values, (list, tuple)) else values


def _inner(tensor):
    return tensor.inner


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return PretendTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_(target, source, non_blocking=False):
    """For ``torch.tensor(values, device="pretend")``, which no mode sees."""
    PretendDevice._note(PretendDevice.active[-1].notes.uploads, aten.copy_.default)
    target.inner.copy_(source)
    return target


_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("copy_", _copy_, "PrivateUse1")
