"""The emulator itself: sound kernels give what they should in any order of threads, and each fault is reported."""

import ctypes
import re
import subprocess

import pytest

from tests.cuda_emulation import build
from tests.cuda_emulation.rewrite import NotUnderstoodError, rewrite

COUNT = 64


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("constructs")
    source = folder / "constructs.cpp"
    source.write_text(rewrite((build.HERE / "constructs.cu").read_text()))
    command = ["c++", "-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-shared", "-Wno-unused-value"]
    include = ["-I", str(build.HERE / "include"), "-include", "emulation.h"]
    subprocess.run([*command, *include, str(source), "-o", str(folder / "constructs.so")], check=True)
    found = ctypes.CDLL(str(folder / "constructs.so"))
    found.run_case.restype = ctypes.c_char_p
    return found


def run(library, name):
    out = (ctypes.c_double * COUNT)()
    return library.run_case(name.encode(), out, COUNT).decode(), list(out)


def shuffled(t):
    lane, warp = t % 32, t // 32
    return 496 + 1024 * warp + 1000 * (lane ^ 5) + 1e5 * (lane - 3 if lane % 8 >= 3 else lane) + 1e7 * (31 + 32 * warp)


def voted(t):
    return (8 if t % 32 < 16 else 5) + 100 + 1000 * 13 + 1e6


RESULTS = {
    "shuffles": shuffled,
    "votes": voted,
    "dynamic float": lambda t: t % 2 * 32 + t // 2 + 496e3,
    "dynamic double": lambda t: t % 2 * 32 + t // 2 + 496e3,
    "fixed": lambda t: 100 * (1 - t // 32) + 31 - t % 32 + 128e3 + 31e6,
    "warps": lambda t: 496,
    "places": lambda t: 105 * 106 / 2 if t < 12 else None,
}


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", RESULTS)
def test_sound_kernels(library, monkeypatch, name, seed):
    monkeypatch.setenv("INSTSEG_EMULATION_SEED", str(seed))
    message, out = run(library, name)
    assert message == ""
    for t, value in enumerate(out):
        expected = RESULTS[name](t)
        assert expected is None or value == expected


FAULTS = {
    "read race": "values at .* (a race, read while|nobody wrote)",
    "write race": "values at .* a race, written while thread",
    "overwrite race": "values at .* a race, ",
    "ballot orders nothing": "values at .* a race, read while",
    "atomic race": "values at .* a race, ",
    "unwritten": "values at .* nobody wrote",
    "former block": "block \\(1, 0, 0\\).* values at .* nobody wrote",
    "above": "thread 63: values at 512 of 512 bytes: an index outside",
    "below": "thread 0: values at -8 of 512 bytes: an index outside",
    "row": "table at .* an index outside",
    "branch": "wait at different places.* __syncthreads in line .* 1 have returned",
    "returned": "wait at different places.* __syncthreads in line .* 23 have returned",
    "two barriers": "wait at different places.* __syncthreads in line .*, __syncthreads in line",
    "loops": "wait at different places.* 32 have returned",
    "missing lane": "wait at different places.* __ballot_sync in line .* of lanes ffffffff",
    "returned lane": "wait at different places.* __shfl_xor_sync in line .* of lanes ffffffff; 2 have returned",
    "not in mask": "thread (31|63): __any_sync in line .* not in its mask",
    "other masks": "wait at different places.* __ballot_sync",
    "foreign lane": "thread (15|47): __shfl_down_sync in line .* reads lane 16, which is not in its mask",
    "dynamic too short": "raw at 520 of 520 bytes: an index outside",
    "partial warp": "wait at different places.* __ballot_sync",
    "no guard": "a launch without a CUDAGuard",
    "unchecked": "a launch after one without C10_CUDA_KERNEL_LAUNCH_CHECK",
    "large": "49153 bytes of shared memory with rest",
    "large dynamic": "a launch with 49153 bytes of shared memory",
    "large together": "bytes of shared memory with",
    "rows of blocks": "a grid of 1 x 65536 x 1 blocks",
    "no blocks": "a grid of 0 x 1 x 1 blocks",
    "2**32 blocks": "a grid or block of 4294967296 in one direction",
    "threads": "a block of 1025 x 1 x 1 threads",
    "layers of threads": "a block of 1 x 1 x 65 threads",
    "bounds": "a block of 257 threads, above its __launch_bounds__ of 256",
}


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_reported(library, monkeypatch, name, seed):
    monkeypatch.setenv("INSTSEG_EMULATION_SEED", str(seed))
    message, _ = run(library, name)
    assert message.startswith("CUDA emulation: ")
    assert re.search(FAULTS[name], message), message
    assert run(library, "fixed")[0] == ""  # and nothing is left of it


@pytest.mark.parametrize(
    "source",
    [
        "void f() { k<<<1, 2>>>(3); }",
        "void f() { k<<<1, 2, 0>>>(3); }",
        "__global__ void k() { extern __shared__ T* a; }",
    ],
)
def test_what_is_not_understood_is_said(source):
    with pytest.raises(NotUnderstoodError):
        rewrite(source)
