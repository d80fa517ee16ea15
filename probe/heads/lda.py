"""Linear discriminant analysis: classes are Gaussians with means of their own and one covariance, which is shrunk.

Source: Fisher 1936; shrinkage towards a multiple of the identity, Friedman 1989 ("Regularized discriminant analysis")::

    S = sum_i w_i (x_i - m_c(i)) (x_i - m_c(i))^T        S_g = (1 - g) S + g tr(S) / F
    logits_c = x^T S_g^-1 m_c - m_c^T S_g^-1 m_c / 2

Every class has the same weight and the same prior. One decomposition of S serves every shrinkage g.

Shapes: M members, N samples, F = T * D features, C classes, R directions.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from featcache.probing.heads.closed_form import (
    ClosedFormLinearHead,
    Directions,
    Settings,
    check_directions,
    sample_weights,
)
from featcache.probing.heads.ncm import class_means
from featcache.probing.scoring.tasks import Task

SHRINKAGES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)


class LdaHead(ClosedFormLinearHead):
    """M affine maps that tell Gaussians apart, of different shrinkage."""

    decomposes = True

    @classmethod
    def grid(cls, num_samples: int) -> tuple[Settings, ...]:
        """Shrinkages, strong to weak."""
        return tuple({"shrinkage": shrinkage} for shrinkage in SHRINKAGES)

    @classmethod
    def check_size(cls, num_samples: int, num_features: int) -> None:
        """Refuse a decomposition that takes too long; errors as of `check_directions`."""
        check_directions("lda", num_samples, num_features)

    @classmethod
    def default(cls) -> Settings:
        """A cautious choice for one sample of each class."""
        return {"shrinkage": 0.5}

    @classmethod
    def fit(
        cls,
        features: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Decompose the covariance; a class without samples gets a bias of minus infinity."""
        means, counts = class_means(features, targets, task.num_outputs)
        center = means[counts > 0].mean(0)  # common to all classes, so it can be taken off for accuracy
        directions = Directions.of(features.double() - means[targets], sample_weights(targets, task))
        offsets = means - center
        total = directions.squares.sum() / features.shape[1]
        # Where every class has one sample, nothing varies within classes, and what is left is the nearest mean.
        total = total if float(total) > 0 else torch.ones_like(total)
        along = offsets @ directions.basis  # [C, R]
        across = offsets - along @ directions.basis.T  # no variance was seen there
        weights, biases = [], []
        for values in settings:
            shrinkage = values["shrinkage"]
            variances = (1 - shrinkage) * directions.squares + shrinkage * total
            weight = (along / variances) @ directions.basis.T + across / (shrinkage * total)
            bias = -(weight * offsets).sum(1) / 2 - weight @ center
            weights.append(weight.float())
            biases.append(bias.where(counts > 0, -torch.inf))
        return cls.of(size, torch.stack(weights), torch.stack(biases))
