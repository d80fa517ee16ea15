"""Least squares with an L2 penalty, solved for all penalties by one decomposition.

Source: ridge regression (Hoerl and Kennard 1970); on 0/1 targets it is the few-shot probe of Big Transfer and big_vision (Kolesnikov
et al. 2020, arXiv 1912.11370)::

    minimize  sum_i w_i |W x_i + b - y_i|^2 + penalty |W|^2        W = Y^T Z (Z^T Z + penalty)^-1

with Z and Y the features and targets after their weighted means are taken off, rows times sqrt(w_i). Every class has the same weight.

Shapes: M members, N samples, F = T * D features, C classes, O outputs, R directions.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.heads.closed_form import (
    ClosedFormLinearHead,
    Directions,
    Settings,
    check_directions,
    sample_weights,
)
from featcache.probing.scoring.tasks import SingleLabel, Task

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
    def fit(
        cls,
        features: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Solve in the directions of the features; a class without samples gets a bias of minus infinity."""
        weights = sample_weights(targets, task)
        blocks = _blocks(targets, task)
        center = weights @ features.double()
        level = _sum(weights[rows] @ targets_of() for rows, targets_of in blocks)
        centered = features.double() - center
        directions = Directions.of(centered, weights)
        # [R, O]: products of features and targets along every direction.
        products = (
            centered[rows].T @ (weights[rows, None] * (targets_of() - level)) for rows, targets_of in blocks
        )
        along = directions.basis.T @ _sum(products)
        penalties = torch.tensor([values["penalty"] for values in settings], device=features.device).double()
        shrunk = directions.squares + penalties[:, None] * directions.squares.sum().clamp(
            min=1e-300
        )  # [M, R]
        solved = [(directions.basis @ (along / row[:, None])).T for row in shrunk]
        weight = torch.stack([member.float() for member in solved])
        bias = torch.stack([level - member @ center for member in solved])
        if isinstance(task, SingleLabel):
            bias = bias.where(level > 0, -torch.inf)
        return cls.of(size, weight, bias)


def _blocks(targets: Tensor, task: Task) -> list[tuple[slice, Callable[[], Tensor]]]:
    """Yield blocks of rows, each with a function that makes their targets ``[B, O]`` in float64, one-hot for class indices."""

    def make(part: Tensor) -> Tensor:
        return (F.one_hot(part, task.num_outputs) if isinstance(task, SingleLabel) else part).double()

    size = max(1, BLOCK_VALUES // task.num_outputs)
    parts = [slice(start, start + size) for start in range(0, len(targets), size)]
    return [(rows, partial(make, targets[rows])) for rows in parts]


def _sum(parts: Iterable[Tensor]) -> Tensor:
    """Add up tensors of one shape, one after another."""
    return reduce(torch.add, parts)
