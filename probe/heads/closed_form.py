"""What the heads that are not trained have in common: they are fitted by formula, for all settings at once.

Shapes: M members (settings), N samples, F = T * D features, C classes, R directions.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.heads.parts import Linear, as_products
from featcache.probing.inputs.features import RESIDENT_BLOCK_BYTES, Features, ResidentFeatures
from featcache.probing.scoring.metrics import class_weights
from featcache.probing.scoring.tasks import SingleLabel, Task
from featcache.store.errors import RequestError

Settings = Mapping[str, float]
"""One member: what validation chooses, by name."""

# Bytes for each value of a block of features in memory: copies in float64, and their centered rows.
RESIDENT_BYTES_PER_VALUE = 32
# Most values of targets in float64 that a fit makes at once.
BLOCK_TARGETS = 2**24
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
    def fit_blocks(
        cls,
        features: Features,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Fit a head for each of the settings to features that are read block by block; see `fit`."""
        raise NotImplementedError

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

    reads_blocks = True
    bytes_per_value = 4
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
        """Return the peak memory of a fit: features, blocks of them in float64, and what `block_bytes` counts."""
        values = num_samples * num_features
        block = RESIDENT_BYTES_PER_VALUE * min(values, max(RESIDENT_BLOCK_BYTES // 4, num_features))
        features = super().bytes_needed(num_samples, num_features, num_outputs)
        return features + block + cls.block_bytes(num_samples, num_features, num_outputs)

    @classmethod
    def block_bytes(cls, num_samples: int, num_features: int, num_outputs: int) -> int:
        """Return the peak memory of a fit without features: weights of all settings, and the decomposition."""
        members = len(cls.grid(num_samples))
        wide = cls.decomposes and num_samples <= num_features
        # The members are stacked in float32, and in the space of the samples they exist in float64 as well.
        weights = (16 if wide else 8) * members * num_outputs * num_features
        if not cls.decomposes:
            return weights + 16 * num_outputs * num_features
        number = min(num_samples, num_features)
        # Rows of outputs in the space of the decomposition: of all settings if that is the space of the samples.
        rows = 16 * num_outputs * number * (members if wide else 2)
        targets = 8 * min(num_samples * num_outputs, 3 * BLOCK_TARGETS)
        return weights + rows + targets + GRAM_BYTES * number**2 + 16 * num_outputs * num_features

    @classmethod
    def fit(
        cls,
        features: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Fit a head for each of the settings; see `ClosedFormHead.fit`."""
        return cls.fit_blocks(ResidentFeatures(features), targets, size, task, settings)

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


def check_directions(method: str, num_samples: int, num_features: int) -> None:
    """Refuse what a decomposition would take too long for; `method` is named.

    Raises:
        RequestError: both numbers are too large.
    """
    number = min(num_samples, num_features)
    if number > MAX_DIRECTIONS:
        raise RequestError(
            f"{method} decomposes a matrix of {number:,} samples or features, whichever are fewer, and takes at most "
            f"{MAX_DIRECTIONS:,}; ask for fewer layers, or for logreg"
        )
