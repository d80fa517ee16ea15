"""What the heads that are not trained have in common: they are fitted by formula, for all settings at once.

Shapes: M members (settings), N samples, F = T * D features, C classes, R directions.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import Linear, as_products
from featcache.probing.scoring.metrics import class_weights
from featcache.probing.scoring.tasks import SingleLabel, Task
from featcache.probing.solver.groups import principal_directions
from featcache.store.errors import RequestError

Settings = Mapping[str, float]
"""One member: what validation chooses, by name."""

# Samples or features, whichever are fewer: the decomposition of a larger matrix takes hours and tens of gigabytes.
MAX_DIRECTIONS = 16384
# Bytes that a decomposition takes for each entry of its matrix: the matrix, its eigenvectors and LAPACK's workspace, in float64.
GRAM_BYTES = 5 * 8


class ClosedFormHead(Head):
    """M heads that differ in their settings, computed from the training samples."""

    calibrated = True
    """Whether the outputs of a classifier are logits; if not, held-out samples also tell how to make logits of them."""
    reads_blocks = False
    """Whether the head can be fitted to features that are read block by block."""
    bytes_per_value = 36
    """Memory at the peak of a fit for each value of the features: themselves in float32, and copies in float64. Measured."""

    @classmethod
    def check_size(cls, num_samples: int, num_features: int) -> None:
        """Refuse data that are too large for the method.

        Raises:
            RequestError: saying what to ask for instead.
        """

    @classmethod
    def bytes_needed(cls, num_samples: int, num_features: int, num_outputs: int) -> int:
        """Return the peak memory of a fit of all settings, without the outputs of the settings."""
        return cls.bytes_per_value * num_samples * num_features

    @classmethod
    def block_bytes(cls, num_samples: int, num_features: int, num_outputs: int) -> int:
        """Return the peak memory of a fit to features that are read block by block, without the blocks."""
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def grid(cls, num_samples: int) -> tuple[Settings, ...]:
        """All settings that make sense with so many training samples; a tie keeps the earlier one."""

    @classmethod
    @abstractmethod
    def default(cls) -> Settings:
        """Settings that are taken where nothing can be held out to choose with."""

    @classmethod
    @abstractmethod
    def fit(
        cls,
        features: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Fit a head for each of the settings.

        Args:
            features: concatenated tokens ``[N, F]``, float32, of a size that `check_size` lets pass.
            targets: ``[N]`` or ``[N, O]``, on the same device.
            size: T and D.
            task: what the targets are.
            settings: one for each member.
        """


class ClosedFormLinearHead(ClosedFormHead):
    """M affine maps of the concatenated tokens, computed by formula."""

    decomposes = False
    """True if a fit decomposes a matrix over samples or features, whichever are fewer."""

    def __init__(
        self, num_tokens: int, width: int, num_classes: int, dropouts: Sequence[float] = (0.0,)
    ) -> None:
        """Build M heads to load parameters into."""
        super().__init__(num_tokens, width, num_classes, dropouts)
        self.classifier = Linear(self.num_members, num_tokens * width, num_classes)

    @classmethod
    def bytes_needed(cls, num_samples: int, num_features: int, num_outputs: int) -> int:
        """Return the peak memory of a fit: features, and the weights of all settings in float64 and float32."""
        weights = 12 * len(cls.grid(num_samples)) * num_outputs * num_features
        gram = GRAM_BYTES * min(num_samples, num_features) ** 2 if cls.decomposes else 0
        return super().bytes_needed(num_samples, num_features, num_outputs) + weights + gram

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Concatenate the tokens: ``[B, F]``."""
        return as_products(x.flatten(1))

    def classify(self, inputs: Tensor) -> Tensor:
        """Map concatenated tokens to logits ``[M, B, C]``."""
        logits: Tensor = self.classifier(inputs)
        return logits

    @classmethod
    def of(cls, size: tuple[int, int], weight: Tensor, bias: Tensor) -> Self:
        """Make heads of T and D from weights ``[M, C, F]`` and biases ``[M, C]``."""
        with torch.device("meta"):  # nothing is drawn, nothing is allocated
            head = cls(*size, weight.shape[1], (0.0,) * len(weight))
        state = {"classifier.weight": weight.float(), "classifier.bias": bias.float()}
        head.load_state_dict(state, assign=True)
        return head.eval()


def sample_weights(targets: Tensor, task: Task) -> Tensor:
    """Weights ``[N]``, float64, of sum 1: every class counts alike; without classes, every sample."""
    if isinstance(task, SingleLabel):
        weights = class_weights(targets, task.num_outputs).double()[targets]
    else:
        weights = torch.ones(len(targets), dtype=torch.float64, device=targets.device)
    return weights / weights.sum()


@dataclass(frozen=True)
class Directions:
    """Weighted principal directions of centered features."""

    squares: Tensor
    """Variance along each, ``[R]``, ascending."""
    basis: Tensor
    """Orthonormal, ``[F, R]``, float64."""

    @classmethod
    def of(cls, centered: Tensor, weights: Tensor) -> "Directions":
        """Decompose centered features ``[N, F]``, float64, of samples with weights ``[N]``."""
        return cls(*principal_directions(centered, weights))


def check_directions(method: str, num_samples: int, num_features: int) -> None:
    """Refuse what `Directions` would take too long for; `method` is named.

    Raises:
        RequestError: both numbers are too large.
    """
    number = min(num_samples, num_features)
    if number > MAX_DIRECTIONS:
        raise RequestError(
            f"{method} decomposes a matrix of {number:,} samples or features, whichever are fewer, and takes at most "
            f"{MAX_DIRECTIONS:,}; ask for fewer layers, or for logreg"
        )
