"""
Unpickles NumPy arrays and builtin containers, and nothing else.

NumPy's own classes and functions accept states that corrupt memory or change the process, so none of them is called.
Stand-ins receive the content of a pickle, check it, and make plain arrays from bytes.
"""

import pickle
from collections import OrderedDict

import numpy as np

__all__ = ["ARRAY_CODES", "load_arrays"]

# Kind and size in bytes of the numeric types that weights may have.
ARRAY_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}


class _DType:
    """A numeric dtype; its state may change the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code):
        if code not in ARRAY_CODES:
            raise pickle.UnpicklingError(f"it refers to an array of type {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] not in ("<", ">", "=", "|") or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError("it refers to a dtype that is not a plain number")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array or number under construction; `value` is the result, in this machine's byte order."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def fill(self, data, dtype: _DType, shape: tuple, order: str, axes=None) -> None:
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("it refers to an array without a dtype")
        data = data.encode("latin1") if isinstance(data, str) else data  # from Python 2
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
        array = array if axes is None else array.transpose(axes)
        self.value = np.array(array, dtype.dtype.newbyteorder("="))  # writable, and in the same memory order

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, data = state
        self.fill(data, dtype, shape, "F" if is_fortran else "C")


class _Function:
    """A function that a pickle may call but not change."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it refers to a function that it changes")


def _frombuffer(data, dtype, shape, order, axes=None):
    array = _Array()
    array.fill(data, dtype, shape, order, axes)
    return array


def _scalar(dtype, data):
    number = _frombuffer(data, dtype, (), "C")
    number.value = number.value[()]
    return number


def _encode(text, encoding="latin1"):
    if encoding not in ("latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"it refers to the encoding {encoding}")
    return str.encode(text, "latin1")


def _bytes(data=b"", encoding="latin1"):
    """bytes of existing data; a number, which would allocate memory, is refused."""
    return _encode(data, encoding) if isinstance(data, str) else bytes(memoryview(data))


_NEW_ARRAY = _Function(lambda *_: _Array())
_BUILTINS = {
    "bytearray": _Function(_bytes),
    "bytes": _Function(_bytes),
    "complex": complex,
    "frozenset": frozenset,
    "set": set,
    "slice": slice,
}
_MULTIARRAY = {"_reconstruct": _NEW_ARRAY, "scalar": _Function(_scalar)}
# Under the module names of Python 2 and 3 and of NumPy 1 and 2.
_KNOWN = {
    "numpy": {"dtype": _Function(lambda code, *_: _DType(code)), "ndarray": _NEW_ARRAY},
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": {"_frombuffer": _Function(_frombuffer)},
    "numpy._core.numeric": {"_frombuffer": _Function(_frombuffer)},
    "collections": {"OrderedDict": OrderedDict},
    "_codecs": {"encode": _Function(_encode)},
    "builtins": _BUILTINS,
    "__builtin__": _BUILTINS,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        found = _KNOWN.get(module, {}).get(name)
        if found is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return found


def _plain(value, done: dict):
    """Replace stand-ins in ``value`` by arrays, also inside dicts, lists and tuples; visits each object once."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, _DType):
        return value.dtype
    if isinstance(value, dict):
        result = done[id(value)] = {}
        result.update((key, _plain(item, done)) for key, item in dict.items(value))
    elif isinstance(value, list):
        result = done[id(value)] = []
        result.extend(_plain(item, done) for item in value)
    elif isinstance(value, tuple):
        result = done[id(value)] = tuple(_plain(item, done) for item in value)
    else:
        result = value
    return result


def load_arrays(file):
    """
    The content of a pickle file of Python 2 or 3, with arrays in this machine's byte order.

    Raises:
        pickle.UnpicklingError: it is damaged, or it contains more than numbers and containers ("it refers to ...").
        Exception: other errors that Python raises for a damaged pickle.
    """
    return _plain(_ArrayUnpickler(file, encoding="latin1").load(), {})
