"""The nearest class mean: a classifier without anything to train.

Source: Mensink et al. 2013 ("Distance-based image classification"); as prototypes, Snell et al. 2017 (arXiv 1703.05175)::

    logits_c = -|x - m_c|^2 / (2 temperature v) = (x . m_c - |m_c|^2 / 2) / (temperature v) + a constant

with m_c the mean of a class in the concatenated tokens and v the mean squared distance of a sample to that of its own. The
temperature changes no decision; it is the one under which the held-out labels are likeliest.

Shapes: M members, N samples, F = T * D features, C classes.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from featcache.probing.heads.closed_form import ClosedFormLinearHead, Settings, sample_weights
from featcache.probing.inputs.features import Features
from featcache.probing.scoring.tasks import Task

TEMPERATURES = (1.0, 0.3, 0.1, 0.03, 0.01)


class NcmHead(ClosedFormLinearHead):
    """M affine maps that compare distances to class means, of different temperatures."""

    @classmethod
    def grid(cls, num_samples: int) -> tuple[Settings, ...]:
        """The temperatures, warm to cold."""
        return tuple({"temperature": temperature} for temperature in TEMPERATURES)

    @classmethod
    def default(cls) -> Settings:
        """A cautious choice for one sample of each class."""
        return {"temperature": 0.1}

    @classmethod
    def fit_blocks(
        cls,
        features: Features,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Take the means; a class without samples gets a bias of minus infinity."""
        means, counts = class_means(features, targets, task.num_outputs)
        weights = sample_weights(targets, task)
        within = means.new_zeros(())
        for rows, block in features.blocks():
            within += weights[rows] @ (block.double() - means[targets[rows]]).square().sum(1)
        temperatures = torch.tensor([values["temperature"] for values in settings], device=features.device)
        # With one sample a class nothing varies within classes; then distances count as they are.
        factors = 1 / (temperatures.double() * within.where(within > 0, 1.0))
        bias = (-means.square().sum(1) / 2).where(counts > 0, -torch.inf)
        return cls.of(size, factors[:, None, None] * means, factors[:, None] * bias)


def class_means(features: Features, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Means ``[C, F]``, float64, and numbers of samples ``[C]`` of every class; 0 for one without samples."""
    counts = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, features.num_features, dtype=torch.float64, device=features.device)
    for rows, block in features.blocks():
        sums.index_add_(0, labels[rows], block.double())
    return sums / counts.clamp(min=1).unsqueeze(1), counts
