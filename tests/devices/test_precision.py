"""Precisions: what a device multiplies fast, and what a context makes of a product."""

import pytest
import torch

from featcache.devices import precision
from featcache.devices.precision import autocast_dtype, fast_precision, forward_context, training_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


def test_fp32_is_really_fp32():
    product = torch.ones(2, 2), torch.ones(2, 2)
    with forward_context(CPU, "fp32"):
        assert torch.mm(*product).dtype == torch.float32
    with forward_context(CPU, "mixed"):
        assert torch.mm(*product).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "dtype", "training"),
    [
        ((7, 0), torch.float16, "fp32"),
        ((7, 5), torch.float16, "fp32"),
        ((8, 0), torch.bfloat16, "bf16"),
        ((9, 0), torch.bfloat16, "bf16"),
    ],
)
def test_a_gpu_without_bfloat16_units(monkeypatch, capability, dtype, training):
    """Extraction takes float16 there, and training float32."""
    # The capability of the device that is asked about, not of the current one.
    capabilities = {GPU: capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device])
    assert autocast_dtype(GPU) == dtype
    assert fast_precision(GPU) == "mixed"
    assert training_precision("auto", GPU) == training


@pytest.mark.parametrize(
    ("units", "extraction", "training"), [(None, "fp32", "fp32"), ("AMX", "mixed", "bf16")]
)
def test_a_cpu_multiplies_bfloat16_where_it_has_units(monkeypatch, units, extraction, training):
    monkeypatch.setattr(precision, "bfloat16_units", lambda: units)
    assert fast_precision(CPU) == extraction
    assert training_precision("auto", CPU) == training
    assert training_precision("bf16", CPU) == "bf16"


def test_metal_trains_in_float32_and_extracts_in_mixed_precision():
    assert fast_precision(torch.device("mps")) == "mixed"
    assert training_precision("auto", torch.device("mps")) == "fp32"
