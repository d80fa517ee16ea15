"""Decoding of int8 features by torch, which rounds to float16 with vector instructions; numpy does it value by value."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def torch_kernel(
    codes: npt.NDArray[np.int8],
    scale: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float32],
    out: npt.NDArray[Any],
    scratch: npt.NDArray[np.float32],
) -> None:
    """See `featcache.store.reading.decoding.Kernel`. Products are exact, so fused arithmetic gives the very values of numpy's."""
    values = torch.from_numpy(out if out.dtype == np.float32 else scratch)
    values.copy_(torch.from_numpy(codes))
    torch.addcmul(torch.from_numpy(offset), values, torch.from_numpy(scale), out=values)
    if out.dtype != np.float32:
        torch.from_numpy(out).copy_(values)
