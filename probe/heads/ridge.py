"""Least squares with an L2 penalty, solved for all penalties by one decomposition.

Source: ridge regression (Hoerl and Kennard 1970); on 0/1 targets it is the few-shot probe of Big Transfer and big_vision (Kolesnikov
et al. 2020, arXiv 1912.11370)::

    minimize  sum_i w_i |W x_i + b - y_i|^2 + penalty |W|^2        W = Y^T Z (Z^T Z + penalty)^-1

with Z and Y the features and targets after their weighted means are taken off, rows times sqrt(w_i). Every class has the same weight.

Shapes: M members, N samples, F = T * D features, C classes, O outputs, R directions.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.heads.closed_form import (
    ClosedFormLinearHead,
    Settings,
    check_directions,
    sample_weights,
)
from featcache.probing.inputs.features import Features
from featcache.probing.scoring.tasks import SingleLabel, Task
from featcache.probing.solver.spectrum import decompose

# Values of targets in a float64 block: N x C one-hot targets would take 8 GB for a million samples of a thousand classes.
BLOCK_VALUES = 2**24
FACTORS = tuple(10.0 ** (-exponent / 2) for exponent in range(15))


class RidgeHead(ClosedFormLinearHead):
    """M affine maps, fitted by least squares under different penalties."""

    calibrated = False
    decomposes = True

    @classmethod
    def grid(cls, num_samples: int) -> tuple[Settings, ...]:
        """Penalties as fractions of the total variance of the features, strong to weak."""
        return tuple({"penalty": factor} for factor in FACTORS)

    @classmethod
    def check_size(cls, num_samples: int, num_features: int) -> None:
        """Refuse a decomposition that takes too long; errors as of `check_directions`."""
        check_directions("ridge", num_samples, num_features)

    @classmethod
    def default(cls) -> Settings:
        """A cautious choice for one sample of each class."""
        return {"penalty": 1e-2}

    @classmethod
    def fit_blocks(
        cls,
        features: Features,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Solve in the directions of the features; a class without samples gets a bias of minus infinity."""
        weights = sample_weights(targets, task)
        roots = weights.sqrt()
        center = torch.zeros(features.num_features, dtype=torch.float64, device=features.device)
        level = torch.zeros(task.num_outputs, dtype=torch.float64, device=features.device)
        for rows, block in features.blocks():
            center += weights[rows] @ block.double()
        step = max(1, BLOCK_VALUES // task.num_outputs)
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            level += weights[rows] @ exact_targets(targets[rows], task)

        def scaled(rows: slice, block: Tensor) -> Tensor:
            return (block.double() - center).mul_(roots[rows, None])

        def scaled_targets(rows: slice) -> Tensor:
            return (exact_targets(targets[rows], task) - level).mul_(roots[rows, None])

        spectrum = decompose(features, scaled)
        penalties = torch.tensor([values["penalty"] for values in settings], device=features.device).double()
        total = spectrum.squares.sum().clamp(min=1e-300)
        factors = 1 / (spectrum.squares + penalties[:, None] * total)  # [M, R]
        weights_of, biases = [], []
        for member in spectrum.apply(spectrum.of_samples(scaled_targets, step), factors):
            weights_of.append(member.float())
            biases.append(level - member @ center)
        bias = torch.stack(biases)
        if isinstance(task, SingleLabel):
            bias = bias.where(level > 0, -torch.inf)
        return cls.of(size, torch.stack(weights_of), bias)


def exact_targets(targets: Tensor, task: Task) -> Tensor:
    """Return targets ``[B, O]`` in float64, one-hot for class indices."""
    return (F.one_hot(targets, task.num_outputs) if isinstance(task, SingleLabel) else targets).double()
