"""The dtype of mixed precision depends on the device."""

import logging

import pytest
import torch

from instseg_d2.inference.precision import autocast_type


@pytest.mark.parametrize(
    ("enabled", "device", "native", "expected"),
    [
        (False, "cuda", True, None),
        (True, "cuda", False, torch.float16),
        (True, "cpu", True, torch.bfloat16),
        (True, "cpu", False, None),
    ],
)
def test_autocast_type(monkeypatch, caplog, enabled, device, native, expected):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: native, raising=False)
    with caplog.at_level(logging.INFO):
        assert autocast_type(enabled, torch.device(device)) is expected
    assert ("no bfloat16" in caplog.text) == (enabled and device == "cpu" and not native)
