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
    Settings,
    check_directions,
    sample_weights,
)
from featcache.probing.heads.ncm import class_means
from featcache.probing.inputs.features import Features
from featcache.probing.scoring.tasks import Task
from featcache.probing.solver.spectrum import decompose

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
    def fit_blocks(
        cls,
        features: Features,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Decompose the covariance; a class without samples gets a bias of minus infinity."""
        means, counts = class_means(features, targets, task.num_outputs)
        center = means[counts > 0].mean(0)  # common to all classes, so it can be taken off for accuracy
        roots = sample_weights(targets, task).sqrt()

        def scaled(rows: slice, block: Tensor) -> Tensor:
            return (block.double() - means[targets[rows]]).mul_(roots[rows, None])

        spectrum = decompose(features, scaled)
        total = spectrum.squares.sum() / features.num_features
        # Where every class has one sample, nothing varies within classes, and what is left is the nearest mean.
        total = total if float(total) > 0 else torch.ones_like(total)
        offsets = means - center
        shrinkages = torch.tensor([values["shrinkage"] for values in settings], device=features.device)
        floors = (shrinkages.double() * total)[:, None]
        slopes = 1 - shrinkages.double()[:, None]
        # 1 / (floor + slope s) = 1 / floor - slope s / (floor (floor + slope s)); the spectrum brings the s.
        factors = slopes / (floors * (floors + slopes * spectrum.squares))
        inner = spectrum.apply(spectrum.of_features(offsets), factors)
        weights, biases = [], []
        for floor, part in zip(floors, inner, strict=True):
            weight = offsets / floor - part
            weights.append(weight.float())
            biases.append((-(weight * offsets).sum(1) / 2 - weight @ center).where(counts > 0, -torch.inf))
        return cls.of(size, torch.stack(weights), torch.stack(biases))
