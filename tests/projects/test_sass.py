"""The counts of projects/benchmarks/sass.py, from a listing written by hand."""

import pytest

from projects.benchmarks.sass import Case, Kernel, instructions, loops_of, short

# Two before, a loop of three around one of two, one behind; a function behind the last EXIT that jumps back.
CODE = [
    (0x00, "MOV R1, c[0x0][0x28]"),
    (0x10, "S2R R0, SR_TID.X"),
    (0x20, "LDG.E R2, desc[UR4][R2.64]"),
    (0x30, "FADD R3, R3, R2"),
    (0x40, "@P0 BRA 0x30"),
    (0x50, "@!P1 BRA 0x70"),
    (0x60, "@P2 BRA 0x20"),
    (0x70, "EXIT"),
    (0x80, "MUFU.RCP R4, R5"),
    (0x90, "BRA 0x40"),
]


def test_loops():
    assert loops_of(CODE) == (3, [(3, 0), (2, 1)])


def test_instructions_for_a_unit():
    kernel = Kernel("k", 32, 0, 0, *loops_of(CODE))
    assert instructions(kernel, Case("pixel", 2, [4, 40])) == pytest.approx((3 + 4 * 3 + 40 * 2) / 2)


def test_other_loops_than_expected_give_no_figure():
    kernel = Kernel("k", 32, 0, 0, *loops_of(CODE))
    assert instructions(kernel, Case("pixel", 2, [4])) is None
    assert instructions(kernel, None) is None


def test_names():
    signature = (
        "void instseg_d2::(anonymous namespace)::forward_kernel<float, float, true>(instseg_d2::X<float>, float*)"
    )
    assert short(signature) == "forward_kernel<float, float, true>"
