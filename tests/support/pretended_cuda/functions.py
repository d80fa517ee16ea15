"""Functions that torch implements in Python or C++ with a look at the device, adapted to pretended tensors.

C++ sees the device ``meta``, so autocast does not act there, and some functions would take another path.
"""

from collections.abc import Callable
from typing import Any

import torch

from .arguments import map_values
from .machine import active_machine, is_active
from .tensors import DeviceTensor

# torch's lists of autocast on CUDA, as far as vision transformers and heads use them:
# https://docs.pytorch.org/docs/stable/amp.html#cuda-ops-that-can-autocast-to-float16
AUTOCAST_TO_LOWER = frozenset(
    {
        "linear",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "addbmm",
        "addmv",
        "mv",
        "einsum",
        "conv1d",
        "conv2d",
        "conv3d",
        "scaled_dot_product_attention",
        "prelu",
        "chain_matmul",
    }
)
AUTOCAST_TO_FLOAT32 = frozenset(
    {
        "layer_norm",
        "group_norm",
        "softmax",
        "log_softmax",
        "sum",
        "prod",
        "cumsum",
        "exp",
        "expm1",
        "log",
        "log1p",
        "pow",
        "__pow__",
        "__rpow__",
        "reciprocal",
        "__rdiv__",
        "rsqrt",
        "cross_entropy",
        "nll_loss",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "binary_cross_entropy_with_logits",
        "cosine_similarity",
        "norm",
        "vector_norm",
        "dist",
        "kl_div",
        "cdist",
        "erfinv",
        "acos",
        "asin",
        "cosh",
        "sinh",
        "tan",
    }
)


class FunctionMode(torch.overrides.TorchFunctionMode):
    """Adapts calls before they reach C++."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_active():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if (adapted := _ADAPTED.get(name)) is not None:
            result = adapted(func, args, kwargs)
            if result is not NotImplemented:
                return result
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(name, args, kwargs)
        thread = active_machine().thread
        before = thread.generator
        # A generator loses its class on its way through C++.
        thread.generator = getattr(kwargs.get("generator"), "pretended", "cpu")
        try:
            return func(*args, **kwargs)
        finally:
            thread.generator = before


def _autocast(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    if "out" in kwargs:
        return args, kwargs
    if name in AUTOCAST_TO_LOWER:
        dtype = torch.get_autocast_dtype("cuda")
    elif name in AUTOCAST_TO_FLOAT32 and kwargs.get("dtype") is None:
        dtype = torch.float32
    else:
        return args, kwargs

    def cast(value: Any) -> Any:
        is_castable = isinstance(value, DeviceTensor) and value.dtype.is_floating_point
        return value.to(dtype) if is_castable and value.dtype not in (dtype, torch.float64) else value

    return map_values(cast, args), map_values(cast, kwargs)


def _to(func: Any, args: Any, kwargs: Any) -> Any:
    """``x.to(...)`` and ``x.type_as(other)``: C++ would take the device ``meta`` of `other`."""
    source, *rest = args
    if rest and isinstance(rest[0], DeviceTensor):
        return source.to(rest[0].device, rest[0].dtype, *rest[1:], **kwargs)
    if not (isinstance(source, DeviceTensor) and kwargs.get("copy")):
        return NotImplemented
    moved = func(*args, **kwargs)
    # `aten._to_copy` gives an alias where nothing changes, because C++ asks for it where CUDA would not.
    return moved.clone() if getattr(moved, "allocation", None) is source.allocation else moved


def _one_hot(func: Any, args: Any, kwargs: Any) -> Any:
    """``one_hot``: C++ does not look at the values of a ``meta`` tensor, as CUDA does."""
    indices = args[0]
    if not isinstance(indices, DeviceTensor):
        return NotImplemented
    classes = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
    classes = int(indices.max()) + 1 if classes == -1 else classes
    machine = active_machine()
    machine.wait_for_stream(machine.current_stream(indices.get_device()), "one_hot")
    zeros = torch.zeros(*indices.shape, classes, dtype=torch.int64, device=indices.device)
    return zeros.scatter_(-1, indices.unsqueeze(-1), 1)


def _with_lists(func: Any, args: Any, kwargs: Any) -> Any:
    """``x[[0, 2]]``: C++ would make the index on the device ``meta``."""
    if not isinstance(args[0], DeviceTensor):
        return NotImplemented
    return func(args[0], _without_lists(args[1], args[0].device), *args[2:], **kwargs)


def _without_lists(index: Any, device: torch.device) -> Any:
    # A function of its own: one that calls itself inside of another is a cycle, which would keep the tensors from being freed.
    if isinstance(index, list):
        return torch.tensor(index).to(device)
    return tuple(_without_lists(part, device) for part in index) if isinstance(index, tuple) else index


def _made_on_host(func: Any, args: Any, kwargs: Any) -> Any:
    """``torch.tensor(values, device="cuda")``: the values are on the host first."""
    device = kwargs.get("device")
    if device is None or torch.device(device).type != "cuda":
        return NotImplemented
    return func(*args, **{**kwargs, "device": "cpu"}).to(device)


_ADAPTED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "to": _to,
    "type_as": _to,
    "one_hot": _one_hot,
    "__getitem__": _with_lists,
    "__setitem__": _with_lists,
    "tensor": _made_on_host,
    "as_tensor": _made_on_host,
}
"""By name of the function; each returns NotImplemented where the call needs no change."""
