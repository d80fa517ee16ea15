"""What stands between stored tokens and a head: the input stage; and between a head's outputs and targets of any unit.

A trained head keeps both, so that it can be given stored tokens and answers in the units of its targets.

Shapes: N samples, T tokens, D width, B batch, O outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featcache.probe.protocol import L2_INPUT

if TYPE_CHECKING:
    from featcache.probe.inputs.tokens import TokenSource

# Samples whose tokens are read at once for their statistics.
READ_ROWS = 1024
# A channel that deviates less than this fraction of its largest is constant: what it holds is rounding.
CONSTANT = 1e-6
_PREFIX = "input."
_OUTPUT_PREFIX = "output."


@dataclass(frozen=True)
class InputStage:
    """Maps stored tokens to what a head sees: ``(x / |x| - mean) * scale``, each step only where it is asked for."""

    l2: bool = True
    """Whether every token is divided by its length; a zero vector stays zero."""
    over_tokens: bool = False
    """Lengths are taken along the token axis instead, channel by channel: a quirk of the runs published in arXiv 2601.09322."""
    mean: Tensor | None = None
    """``[T, D]``, float32: of the samples that the head was trained on."""
    scale: Tensor | None = None
    """``[T, D]``, float32: 1 over their standard deviation; 0 for a constant channel."""
    projection: Tensor | None = None
    """``[D, D]``, float32: the model's own projection, zero-padded; applied first, to the tokens in `projected`."""
    projected: Tensor | None = None
    """``[P]``, int64: places of tokens."""

    @property
    def is_plain(self) -> bool:
        """Whether this is the paper's stage and nothing else."""
        return self.l2 and not self.over_tokens and self.mean is None and self.projection is None

    def apply_(self, tokens: Tensor) -> Tensor:
        """Map stored tokens ``[B, T, D]``, a float tensor that may be changed; returns it."""
        if self.projection is not None:
            projection = self.projection.to(tokens)
            tokens[:, self.projected] = tokens[:, self.projected] @ projection
        if self.l2:
            norms = torch.linalg.vector_norm(tokens, dim=1 if self.over_tokens else 2, keepdim=True)
            tokens.mul_(norms.reciprocal().where(norms > 0, 0.0))
        if self.mean is not None and self.scale is not None:
            tokens.sub_(self.mean).mul_(self.scale)
        return tokens

    def to(self, device: torch.device | str) -> "InputStage":
        """Return the stage with its tensors on a device."""
        tensors = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return InputStage(self.l2, self.over_tokens, **tensors)

    def state(self) -> dict[str, Tensor]:
        """Return the stage as tensors to save; none for the plain one."""
        if self.is_plain:
            return {}
        flags = torch.tensor([self.l2, self.over_tokens], dtype=torch.uint8)
        return {f"{_PREFIX}flags": flags} | {
            _PREFIX + name: tensor for name, tensor in self._tensors().items()
        }

    def _tensors(self) -> dict[str, Tensor]:
        names = ("mean", "scale", "projection", "projected")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> tuple["InputStage", dict[str, Tensor]]:
        """Take a stage out of saved tensors; also returns the others."""
        own = {
            name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)
        }
        rest = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
        if not own:
            return cls(), rest
        l2, over_tokens = (bool(flag) for flag in own.pop("flags"))
        return cls(l2, over_tokens, **own), rest


PLAIN = InputStage()


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
        scale, mean = torch.std_mean(targets.double(), dim=0, correction=0)
        return cls(mean.float(), scale.where(scale > 0, 1.0).float())

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


def fit_stage(name: str, tokens: "TokenSource", rows: Tensor) -> InputStage:
    """Fit an input stage to the samples that are trained on, in one pass over them.

    Args:
        name: ``l2``, ``standard`` (mean and deviation per token and channel) or ``l2+standard``.
        tokens: the source; its own stage says whether tokens are projected first, and along which axis lengths are taken.
        rows: ``[R]``, int64: which samples. No other is read.
    """
    base = replace(tokens.stage, l2="l2" in name.split("+"), mean=None, scale=None)
    if name == L2_INPUT:
        return base
    source = tokens.with_stage(base)
    count = 0
    mean = torch.zeros(tokens.num_tokens, tokens.width, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for part in torch.split(rows, READ_ROWS):
        batch = source.batch(part)
        # Sums of parts are joined as by Chan, Golub and LeVeque (1983): exact where mean and deviation differ by much.
        variance, centre = (
            moment.cpu().double() for moment in torch.var_mean(batch.float(), dim=0, correction=0)
        )
        shift, total = centre - mean, count + len(part)
        mean += shift * (len(part) / total)
        squares += variance * len(part) + shift.square() * (count * len(part) / total)
        count = total
    deviation = (squares / max(count, 1)).sqrt()
    largest = torch.maximum(deviation.max(), mean.abs().max())
    scale = deviation.reciprocal().where(deviation > CONSTANT * largest, 0.0)
    return replace(base, mean=mean.float(), scale=scale.float())
