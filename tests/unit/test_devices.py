"""What a device is said to be able to do."""

from __future__ import annotations

import pytest
import torch

from modality_forcing.devices import emulates_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "emulates"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "arm64", "neon": True, "bf16": False}, True),
        ({"architecture": "arm64", "bf16": True, "sve_bf16": False}, False),
        ({"architecture": "riscv64"}, False),
    ],
)
def test_bfloat16_is_emulated_only_where_every_instruction_is_known_to_lack(
    capabilities, emulates, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert emulates_bfloat16(CPU) is emulates
    assert not emulates_bfloat16(torch.device("cuda"))


def test_an_old_pytorch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not emulates_bfloat16(CPU)
