"""Devices by name."""

import pytest
import torch

from featcache.devices.choice import choose_device
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
