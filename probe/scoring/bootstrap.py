"""How sure a score on test is: bootstrap over the test samples (Efron 1979).

Shapes: N samples, O outputs, S resamples.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.scoring.soundness import is_sound
from featcache.probing.scoring.tasks import MultiLabel, SingleLabel, Task

RESAMPLES = 1000
LEVEL = 0.95
# Drawn counts in a block.
BLOCK_VALUES = 2**21


def score_interval(
    outputs: Tensor, targets: Tensor, task: Task, level: float = LEVEL
) -> tuple[float, float] | None:
    """Return the percentile interval of the task's score over resampled test samples.

    It tells how far another test set of this size might give another score; what another seed of the training gives, it does not
    tell. Of single labels, samples are drawn class by class, as balanced accuracy weighs them.

    Args:
        outputs: ``[N, O]``.
        targets: as the task has them.
        task: what is scored.
        level: of the interval.

    Returns:
        Low and high. None for label sets, whose mean average precision takes too long to compute a thousand times; for outputs
        that are not finite; and for a single sample.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    if isinstance(task, MultiLabel) or not is_sound(outputs, task.kind) or len(targets) < 2:
        return None
    if isinstance(task, SingleLabel):
        scores = _balanced_accuracies(outputs.argmax(1) == targets, targets, rng)
    else:
        scores = _r2(outputs.double().numpy(), targets.double().numpy(), rng)
    tail = (1 - level) / 2
    low, high = np.quantile(scores, (tail, 1 - tail))
    return float(low), float(high)


def _balanced_accuracies(hits: Tensor, labels: Tensor, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """``[S]``: the recall of a resampled class is a binomial share."""
    counts = torch.bincount(labels)
    right = torch.bincount(labels[hits], minlength=len(counts))
    present = counts > 0
    number, share = counts[present].numpy(), (right[present] / counts[present]).double().numpy()
    step = max(1, BLOCK_VALUES // len(number))
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    # Draw blocks in sequence: the same draws as of one call, in less memory.
    blocks = (rng.binomial(number, np.clip(share, 0, 1), size=(size, len(number))) for size in sizes)
    return np.concatenate([(drawn / number).mean(1) for drawn in blocks])


def _r2(
    guessed: npt.NDArray[np.float64], actual: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """``[S]``, the mean over outputs."""
    errors = np.square(guessed - actual)
    scores = []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, len(actual), len(actual))
        spread = np.square(actual[rows] - actual[rows].mean(0)).sum(0)
        error, constant = errors[rows].sum(0), np.ptp(actual[rows], axis=0) == 0
        # A constant target, as scikit-learn scores it: 1 if it is met, else 0.
        shares = np.where(constant, error > 0, error / np.where(constant, 1.0, spread))
        scores.append((1 - shares).mean())
    return np.array(scores)
