"""A pretended CUDA machine for tests: tensors report ``cuda:N`` and have real values, which lie in CPU memory.

Usage::

    with pretended_cuda(num_devices=2, capacity_bytes=2**30) as machine:
        ...  # torch.cuda.is_available() is true in here
        assert not machine.problems

It detects, on a machine without a GPU:

- operands on different devices, ``.numpy()`` of a device tensor, and generators of another device, which CUDA refuses;
- reads on one stream of values that another stream writes, without a wait between them;
- reads on the host before a copy from the device has finished (the host buffer holds NaN or -1 until then);
- memory that is freed while another stream uses it (a missing ``record_stream``);
- out of memory at a set capacity.

It counts kernels, host waits, and bytes copied. No kernel runs on a device, so nothing here tells the speed of a GPU or
the rounding of its arithmetic.
"""

from .machine import Machine, Problem
from .patches import pretended_cuda

__all__ = ["Machine", "Problem", "pretended_cuda"]
