"""A device from the name that the user gives."""

import torch

from featcache.store.errors import RequestError
from featcache.store.requests import AUTO


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means; ``auto`` takes a GPU where there is one.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        RequestError: there is no such device on this machine.
    """
    if name == AUTO:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # its text lists every device type that torch was ever built for
        raise RequestError(
            f"device {name!r} cannot be used here (write auto, cpu, cuda, cuda:1 or mps); try --device cpu"
        ) from None
    try:
        torch.ones(1, device=device).item()  # refuses a device without values, such as `meta`
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise RequestError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from None
    return device
