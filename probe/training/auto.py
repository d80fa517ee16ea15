"""``--head auto``: heads, input transforms and solvers compete on held-out samples of train; the best is fitted on all of it.

The candidates are few and known to be good, since each look at the held-out samples is one more chance to be lucky. The best two and
three are also averaged. The test split has no say.

Shapes: R held-out samples, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featcache.probing.protocols.protocol import L2_INPUT, L2_STANDARD_INPUT, STANDARD_INPUT
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.probing.scoring.tasks import Task

if TYPE_CHECKING:
    from featcache.probing.training.fitted import FittedHead

_TRAINED = (
    ("linear", L2_INPUT),
    ("linear", STANDARD_INPUT),
    ("attentive", L2_INPUT),
    ("attentive", STANDARD_INPUT),
)
_RIDGE = tuple(("ridge", transform) for transform in (L2_INPUT, STANDARD_INPUT, L2_STANDARD_INPUT))
CANDIDATES: dict[str, tuple[tuple[str, str], ...]] = {
    SINGLE_LABEL: (
        *(("logreg", transform) for transform in (L2_INPUT, STANDARD_INPUT, L2_STANDARD_INPUT)),
        ("lda", L2_INPUT),
        *_TRAINED[2:],
    ),
    MULTI_LABEL: (*_RIDGE, *_TRAINED),
    REGRESSION: (*_RIDGE, *_TRAINED),
}
"""Head and input transform, by kind of targets; a tie goes to the earlier one."""
LARGEST_BLEND = 3


@dataclass(frozen=True)
class Candidate:
    """One head on one input transform, and its validation."""

    head: str
    input: str
    score: float
    held_out: Tensor
    """Outputs ``[R, O]`` on held-out samples, of the settings that were best."""
    finish: Callable[[], "FittedHead"]
    """Fit the head on all of train."""

    @classmethod
    def of(cls, fitted: "FittedHead", held_out: Tensor) -> "Candidate":
        """Return a head that is fitted on all of train already as a candidate, with its held-out outputs ``[R, O]``."""
        return cls(fitted.name, fitted.input, fitted.validation, held_out.cpu(), lambda: fitted)

    def __str__(self) -> str:
        """Such as ``logreg on standard``."""
        return f"{self.head} on {self.input}"


@dataclass(frozen=True)
class Choice:
    """The winner: one candidate, or several that are averaged."""

    parts: tuple[Candidate, ...]
    score: float
    held_out: Tensor

    def __str__(self) -> str:
        """The parts by name."""
        return " + ".join(map(str, self.parts))


def choose(candidates: Sequence[Candidate], targets: Tensor, task: Task) -> tuple[Choice, str]:
    """Choose among candidates and averages of the best of them.

    Args:
        candidates: the earlier wins a tie.
        targets: of the held-out samples.
        task: what they are scored by.

    Returns:
        The choice, and why, in one line.
    """
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    best = Choice((ranked[0],), ranked[0].score, ranked[0].held_out)
    blends = [_blend(ranked[:size], targets, task) for size in range(2, min(LARGEST_BLEND, len(ranked)) + 1)]
    chosen = max((best, *blends), key=lambda choice: choice.score)
    others = [f"{candidate} {candidate.score:.4f}" for candidate in ranked if (candidate,) != chosen.parts]
    blended = [
        f"average of the best {len(blend.parts)} {blend.score:.4f}" for blend in blends if blend is not chosen
    ]
    reason = f"{chosen}: {task.metric} {chosen.score:.4f} on held-out samples of train"
    return chosen, "; ".join((reason, *others, *blended))


def _blend(parts: Sequence[Candidate], targets: Tensor, task: Task) -> Choice:
    mean = torch.stack([task.probabilities(part.held_out) for part in parts]).mean(0)
    outputs = task.logits(mean)
    return Choice(tuple(parts), task.score(outputs, targets), outputs)
