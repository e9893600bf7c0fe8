"""Arrays survive pickling unchanged; crafted pickles do no harm."""

import io
import os
import pickle
import struct
import sys
from collections import OrderedDict

import numpy as np
import pytest

from instseg_d2.checkpoint import read_weights
from instseg_d2.checkpoint.pickles import load_arrays
from instseg_d2.errors import CheckpointError
from tests.processes import forked

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8", "c8", "c16"]
PROTOCOLS = range(2, 6)


def loaded(value, protocol):
    return load_arrays(io.BytesIO(pickle.dumps(value, protocol=protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_byte_orders(dtype, protocol):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    for order in "<>":
        found = loaded(array.astype(np.dtype(dtype).newbyteorder(order)), protocol)
        assert type(found) is np.ndarray
        assert found.dtype == np.dtype(dtype)  # in this machine's byte order
        assert found.flags.writeable
        np.testing.assert_array_equal(found, array, strict=True)
    number = loaded(array[1, 2], protocol)
    assert type(number) is type(array[1, 2])
    assert number == array[1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),  # neither C nor Fortran
        np.arange(10)[::-3],
        np.array(2.5),
        np.zeros((0, 3)),
        np.zeros(0, np.float32),
    ],
    ids=["fortran", "transposed", "strided", "0-d", "0x3", "empty"],
)
def test_shapes_and_memory_orders(array, protocol):
    found = loaded(array, protocol)
    np.testing.assert_array_equal(found, array, strict=True)
    assert found.flags.f_contiguous == pickle.loads(pickle.dumps(array, protocol=protocol)).flags.f_contiguous


def test_python_2():
    """A pickle of Python 2, with its module names and byte strings; values by hand."""
    raw = struct.pack(">2h", 1, -2)
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x04"
        + raw
        + b"tb."
    )
    found = load_arrays(io.BytesIO(data))
    assert found.dtype == np.int16
    assert found.tolist() == [1, -2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers(protocol):
    array = np.arange(3)
    state = OrderedDict(a=array, b=[(array, {"c": array})], d={1, 2}, e=b"\x00\xff", f=bytearray(b"xy"), g=None)
    state._metadata = {"version": 1}
    found = loaded(state, protocol)
    assert type(found) is dict
    assert list(found) == list("abdefg")
    for part in (found["a"], found["b"][0][0], found["b"][0][1]["c"]):
        assert part.tolist() == [0, 1, 2]
    assert (found["d"], found["e"], found["f"], found["g"]) == ({1, 2}, b"\x00\xff", b"xy", None)
    loop = []
    loop.append(loop)
    found = loaded(loop, protocol)
    assert found[0] is found


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def dtype(code):
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"


def raw_pointer():
    """An array of raw bytes whose dtype is later changed to a pointer to an object."""

    def state(flags):
        fields = b"}" + text("a") + dtype("O") + integer(0) + b"\x86s"
        return b"(" + integer(3) + text("|") + b"N" + text("a") + b"\x85" + fields + integer(8) + integer(1) + flags

    raw = struct.pack("<Q", 0x4141414141414140)
    return (
        b"\x80\x02" + dtype("V8") + b"q\x00" + state(integer(0)) + b"tb0"
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85U\x01b\x87R"
        b"(" + integer(1) + integer(1) + b"\x85h\x00\x89U\x08" + raw + b"tbq\x01"
        b"h\x00" + state(integer(63)) + b"tb00}" + text("model") + b"}" + text("w") + b"h\x01ss"
        + text("__author__") + text("x") + b"s."
    )  # fmt: skip


def pointer_among_numbers():
    """The same, starting with a numeric dtype."""
    fields = b"}" + text("a") + dtype("f8") + integer(0) + b"\x86s"
    state = b"(" + integer(3) + text("<") + b"N" + text("a") + b"\x85" + fields + integer(8) + integer(1) + integer(63)
    return b"\x80\x02" + dtype("f8") + state + b"tb."


def changed_function(module, name, attribute):
    return f"c{module}\n{name}\n".encode() + b"N}" + text(attribute) + b"K\x01\x85s\x86b."


ATTACKS = {
    "pointer": raw_pointer(),
    "fields": pointer_among_numbers(),
    "subarray": b"\x80\x02" + dtype("f8") + b"(" + integer(3) + text("<") + dtype("f8") + b"K\x02\x86NNtb.",
    "defaults": changed_function("numpy._core.numeric", "_frombuffer", "__defaults__"),
    "attribute of the array type": changed_function("numpy", "ndarray", "__doc__"),
    "attribute of the dtype type": changed_function("numpy", "dtype", "__setstate__"),
    "object array": pickle.dumps(np.array([1, None], object)),
    "text array": pickle.dumps(np.array(["a"])),
    "dates": pickle.dumps(np.array(["2020-01-01"], "M8[D]")),
    "void": b"\x80\x02" + dtype("V8") + b".",
    "dtype of its own": b"\x80\x02cnumpy.core.multiarray\nscalar\nccollections\nOrderedDict\n)R}"
    + text("dtype")
    + text("V8")
    + b"sbU\x08AAAAAAAA\x86R.",
    "encoding": b"c_codecs\nencode\n" + text("a") + text("rot13") + b"\x86R.",
    "inner name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
}


def refusals(paths):
    """What is said of the files that are not loaded; an error in a destructor ends the process."""
    sys.unraisablehook = lambda _: os.abort()
    said = []
    for path in paths:
        try:
            read_weights(path).clear()
        except CheckpointError as error:
            said.append(str(error))
    return said


def test_attacks_are_refused(tmp_path):
    """In a process of its own, so that a successful attack does not end the tests."""
    paths = [tmp_path / f"{name.replace(' ', '_')}.pkl" for name in ATTACKS]
    for path, attack in zip(paths, ATTACKS.values()):
        path.write_bytes(attack)
    status, said = forked(refusals, [str(path) for path in paths])
    assert status == 0
    assert len(said) == len(paths)
    for path, line in zip(paths, said):
        assert f"{path} is not loaded, because it holds more than weights and could run code: it refers to" in line
        assert f"--trust {path}" in line
        assert "\n" not in line


@pytest.mark.parametrize(("module", "name"), [("collections", "OrderedDict"), ("builtins", "set")])
def test_types_cannot_be_changed(tmp_path, module, name):
    (tmp_path / "w.pkl").write_bytes(changed_function(module, name, "pop"))
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights(str(tmp_path / "w.pkl"))
    assert callable(OrderedDict.pop)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x07" + (2**50).to_bytes(7, "little") + b"\x85R.",
        b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b".",
        b"\x80\x05\x8e" + (2**62).to_bytes(8, "little") + b".",
        b"]" * 100_000 + b"a" * 99_999 + b".",  # a list in a list in a list ...
        pickle.dumps(np.zeros(3))[:-20] + b".",
        b"\x80\x02" + dtype("f3") + b".",
        b"c_codecs\nencode\n" + text("\u20ac") + text("latin1") + b"\x86R.",
    ],
    ids=["bytearray", "bytearray8", "bytes8", "deep", "cut", "f3", "encode"],
)
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pkl is") as error:
        read_weights(str(tmp_path / "w.pkl"))
    assert "\n" not in str(error.value)
