"""What stands between stored tokens and a head: the input transform; and between a head's outputs and targets of any unit.

A trained head keeps both, so that it can be given stored tokens and answers in the units of its targets.

Shapes: N samples, T tokens, D width, B batch, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featcache.probing.protocols.protocol import L2_INPUT

if TYPE_CHECKING:
    from featcache.probing.inputs.tokens import TokenSource

# Samples whose tokens are read at once for their statistics.
READ_ROWS = 1024
# Values in a block that is measured in float64.
MEASURED_VALUES = 2**24
# Deviation, in units of the last place, that counts as rounding in a channel computed in float32 (normalized or projected).
ROUNDING_BITS = 4
# A float32 mean is exact enough if its rounding error moves no standardized value by more than this.
FINE_OFFSET = 2.0**-12
_PREFIX = "input."
_OUTPUT_PREFIX = "output."


@dataclass(frozen=True)
class InputTransform:
    """Maps stored tokens to what a head sees: ``(x / |x| - mean) * scale``, each step only where it is asked for."""

    l2: bool = True
    """Whether every token is divided by its length; a zero vector stays zero."""
    over_tokens: bool = False
    """Lengths are taken along the token axis instead, channel by channel: a quirk of the runs published in arXiv 2601.09322."""
    mean: Tensor | None = None
    """``[T, D]``, float32: of the samples that the head was trained on."""
    scale: Tensor | None = None
    """``[T, D]``, float32: 1 over their standard deviation; 0 for a constant channel."""
    offset: Tensor | None = None
    """``[T, D]``, float32: subtracted last, where float32 is too coarse for the mean of a channel of tiny deviation."""
    projection: Tensor | None = None
    """``[D, D]``, float32: the model's own projection, zero-padded; applied first, to the tokens in `projected`."""
    projected: Tensor | None = None
    """``[P]``, int64: places of tokens."""

    @property
    def is_plain(self) -> bool:
        """Whether this is the paper's transform and nothing else."""
        return self.l2 and not self.over_tokens and self.mean is None and self.projection is None

    def apply_(self, tokens: Tensor) -> Tensor:
        """Map stored tokens ``[B, T, D]``, a float tensor that may be changed; returns it."""
        if self.projection is not None:
            projection = self.projection.to(tokens)
            tokens[:, self.projected] = tokens[:, self.projected] @ projection
        if self.l2:
            norms = lengths(tokens, 1 if self.over_tokens else 2).unsqueeze(1 if self.over_tokens else 2)
            tokens.mul_(inverse(norms))
        if self.mean is not None and self.scale is not None:
            tokens.sub_(self.mean).mul_(self.scale)
            if self.offset is not None:
                tokens.sub_(self.offset)
        return tokens

    def to(self, device: torch.device | str) -> "InputTransform":
        """Return the transform with its tensors on a device."""
        tensors = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return InputTransform(self.l2, self.over_tokens, **tensors)

    def state(self) -> dict[str, Tensor]:
        """Return the transform as tensors to save; none for the plain one."""
        if self.is_plain:
            return {}
        flags = torch.tensor([self.l2, self.over_tokens], dtype=torch.uint8)
        return {f"{_PREFIX}flags": flags} | {
            _PREFIX + name: tensor for name, tensor in self._tensors().items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        names = ("mean", "scale", "offset", "projection", "projected")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> tuple["InputTransform", dict[str, Tensor]]:
        """Take a transform out of saved tensors; also returns the others."""
        own = {
            name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)
        }
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
        if not own:
            return cls(), rest
        l2, over_tokens = (bool(flag) for flag in own.pop("flags"))
        return cls(l2, over_tokens, **own), rest


PLAIN = InputTransform()


@dataclass(frozen=True)
class OutputScale:
    """Maps a head's outputs to the units of regression targets: ``outputs * scale + mean``."""

    mean: Tensor
    """``[O]``, float32: of the targets that the head was trained on."""
    scale: Tensor
    """``[O]``, float32: their standard deviation; 1 for a constant."""

    @classmethod
    def of(cls, targets: Tensor) -> "OutputScale":
        """Measure targets ``[N, O]``."""
        variance, mean = torch.var_mean(targets.double(), dim=0, correction=0)
        constant = is_constant(variance, mean, len(targets))
        return cls(mean.float(), variance.sqrt().where(~constant, 1.0).float())

    def apply(self, outputs: Tensor) -> Tensor:
        """Map outputs ``[..., O]``."""
        return outputs * self.scale.to(outputs.device) + self.mean.to(outputs.device)

    def undo(self, targets: Tensor) -> Tensor:
        """Map targets ``[..., O]`` to what a head is trained to give."""
        return (targets - self.mean.to(targets.device)) / self.scale.to(targets.device)

    def state(self) -> dict[str, Tensor]:
        """Return the scale as tensors to save."""
        return {f"{_OUTPUT_PREFIX}mean": self.mean, f"{_OUTPUT_PREFIX}scale": self.scale}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> tuple["OutputScale | None", dict[str, Tensor]]:
        """Take a scale, if there is one, out of saved tensors; also returns the others."""
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(_OUTPUT_PREFIX)}
        if len(rest) == len(state):
            return None, rest
        return cls(state[f"{_OUTPUT_PREFIX}mean"], state[f"{_OUTPUT_PREFIX}scale"]), rest


def lengths(tokens: Tensor, dim: int = -1, *, was_half: bool = False) -> Tensor:
    """Return Euclidean norms of float32 `tokens` along an axis, which is removed.

    A float32 sum of squares underflows for lengths below 1e-15 and overflows above 1e18, so such tensors use float64. Values that
    `was_half` says were float16 have no such lengths but 0, so a GPU need not be waited for to know.
    """
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=dim)
    if was_half:
        return norms
    extreme = (norms < 1e-15) | (norms > 1e18)
    if tokens.device.type != "mps" and bool(extreme.any()):
        norms = torch.linalg.vector_norm(tokens, dim=dim, dtype=torch.float64).float()
    return norms


def inverse(norms: Tensor) -> Tensor:
    """Return 1 over each length; 0 for a length of 0, so that a zero vector stays one."""
    return norms.reciprocal().where(norms >= torch.finfo(torch.float32).tiny, 0.0)


def is_constant(variance: Tensor, mean: Tensor, count: int) -> Tensor:
    """Return, per channel, whether a variance of `count` values is only float64 rounding of their mean (scikit-learn's rule)."""
    eps = torch.finfo(torch.float64).eps
    return variance <= count * eps * variance + (count * mean * eps).square()


def fit_input_transform(name: str, tokens: "TokenSource", rows: Tensor) -> InputTransform:
    """Fit an input transform to the samples that are trained on, in one pass over them.

    A channel counts as constant if it deviates from its own mean by no more than rounding, regardless of the scale of the other
    channels.

    Args:
        name: ``l2``, ``standard`` (mean and deviation per token and channel) or ``l2+standard``.
        tokens: the source; its own transform says whether tokens are projected first, and along which axis lengths are taken.
        rows: ``[R]``, int64: which samples. No other is read.
    """
    base = replace(tokens.input_transform, l2="l2" in name.split("+"), mean=None, scale=None, offset=None)
    if name == L2_INPUT:
        return base
    variance, mean = _moments(tokens.with_transform(base), rows)
    constant = is_constant(variance, mean, len(rows))
    if base.l2 or base.projection is not None:
        constant |= variance.sqrt() <= ROUNDING_BITS * torch.finfo(torch.float32).eps * mean.abs()
    scale = variance.sqrt().reciprocal().where(~constant, 0.0).float()
    scale = scale.where(scale.isfinite(), 0.0)
    rounded = mean.float()
    offset = ((mean - rounded.double()) * scale.double()).float()
    fine = bool((offset.abs() <= FINE_OFFSET).all())
    return replace(base, mean=rounded, scale=scale, offset=None if fine else offset)


def _moments(source: "TokenSource", rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean ``[T, D]`` of some samples, float64, on the CPU."""
    count = 0
    mean = torch.zeros(source.num_tokens, source.width, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    at_once = max(1, min(READ_ROWS, MEASURED_VALUES // max(1, mean.numel())))
    for part in torch.split(rows, at_once):
        batch = source.batch(part)
        exact = (batch.cpu() if batch.device.type == "mps" else batch).double()
        # Sums of parts are joined as by Chan, Golub and LeVeque (1983): exact where mean and deviation differ by much.
        variance, centre = (moment.cpu() for moment in torch.var_mean(exact, dim=0, correction=0))
        shift, total = centre - mean, count + len(part)
        mean += shift * (len(part) / total)
        squares += variance * len(part) + shift.square() * (count * len(part) / total)
        count = total
    return squares / max(count, 1), mean
