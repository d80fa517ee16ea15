"""Devices by name."""

import pytest
import torch

from featcache.extraction.forward_pass.device import (
    autocast_dtype,
    choose_device,
    default_batch_size,
    forward_context,
)
from featcache.store.arrays import MIN_BLOCK_ROWS
from featcache.store.errors import RequestError


def test_devices_by_name():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cpu cpu", "meta"])
def test_a_device_that_cannot_be_used(name):
    with pytest.raises(RequestError) as caught:
        choose_device(name)
    assert str(caught.value).startswith(f"device {name!r} cannot be used here (")
    assert str(caught.value).endswith("); try --device cpu")
    assert "\n" not in str(caught.value)


def test_fp32_is_really_fp32():
    product = torch.ones(2, 2), torch.ones(2, 2)
    with forward_context(torch.device("cpu"), "fp32"):
        assert torch.mm(*product).dtype == torch.float32
    with forward_context(torch.device("cpu"), "mixed"):
        assert torch.mm(*product).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_a_gpu_without_bfloat16_units_takes_float16(monkeypatch, capability, dtype):
    # Of the device that is asked about, not of the current one.
    asked = {torch.device("cuda:1"): capability}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: asked[device])
    assert autocast_dtype(torch.device("cuda:1")) == dtype


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_default_batches_divide_blocks(device):
    """Block sizes are powers of two from `MIN_BLOCK_ROWS` on, so no batch is smaller than it need be."""
    assert MIN_BLOCK_ROWS % default_batch_size(torch.device(device)) == 0
