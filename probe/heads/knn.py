"""Nearest neighbors by cosine, with votes that fall off with distance.

Source: the weighted vote of Wu et al. 2018 (arXiv 1805.01978), which DINO made the usual test of features without training
(Caron et al. 2021, arXiv 2104.14294)::

    p(c) ~ sum over the k nearest i of exp(cos(x, x_i) / temperature) [y_i = c]

on the concatenated tokens. For label sets the vote is taken class by class; numbers are averaged with the same weights.

Shapes: M members, N training samples, F = T * D features, B batch, C classes, O outputs.
"""

from collections.abc import Sequence
from itertools import product
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.heads.closed_form import ClosedFormHead, Settings
from featcache.probing.heads.gallery_file import release_pages, write_gallery
from featcache.probing.inputs.features import Features
from featcache.probing.scoring.kinds import REGRESSION, SINGLE_LABEL
from featcache.probing.scoring.tasks import Task

NEIGHBOURS = (20, 10, 5, 1, 50, 100, 200)
TEMPERATURES = (0.07, 0.02, 0.2, 1.0)
# Similarities in a block, 64 MB. Measured on a CPU: blocks of a sixteenth are 1.5 times slower than all similarities at once, since
# every block reads and arranges the gallery again. A block has a minimum of rows for that reason; these take less than the features.
BLOCK_VALUES = 2**24
LEAST_ROWS = 128
# Bytes of a gallery in a file that are compared with a batch at once, and similarities with it in a block.
PART_BYTES, PART_VALUES = 2**24, 2**22
# Of a probability: no vote for a class is not proof against it.
FLOOR = 1e-4


class KnnHead(ClosedFormHead):
    """M votes over the same training samples, which the head keeps."""

    bytes_per_value = 12
    reads_blocks = True
    mapped = False
    """Whether the gallery is a file that is mapped into memory, whose pages are given back after use."""

    gallery: Tensor
    targets: Tensor
    k: Tensor
    temperature: Tensor

    def __init__(
        self,
        num_tokens: int,
        width: int,
        num_classes: int,
        dropouts: Sequence[float] = (0.0,),
        *,
        num_samples: int = 1,
        kind: str = SINGLE_LABEL,
    ) -> None:
        """Build M heads for N training samples and targets of a kind, to load them into."""
        super().__init__(num_tokens, width, num_classes, dropouts)
        self.num_samples, self.kind = num_samples, kind
        members = self.num_members
        targets = (
            torch.zeros(members, num_samples, dtype=torch.int64)
            if kind == SINGLE_LABEL
            else torch.zeros(members, num_samples, num_classes)
        )
        self.register_buffer("gallery", torch.zeros(members, num_samples, num_tokens * width))
        self.register_buffer("targets", targets)
        self.register_buffer("k", torch.ones(members, dtype=torch.int64))
        self.register_buffer("temperature", torch.ones(members))

    @classmethod
    def bytes_needed(cls, num_samples: int, num_features: int, num_outputs: int) -> int:
        """Return the peak memory of a fit: features, the gallery, and one block of similarities with its sorted part."""
        block = 4 * min(num_samples, _block_rows(num_samples)) * num_samples
        return super().bytes_needed(num_samples, num_features, num_outputs) + block

    @classmethod
    def block_bytes(cls, num_samples: int, num_features: int, num_outputs: int) -> int:
        """Return the peak memory besides blocks: a part of the gallery and its similarities, and the labels of all samples."""
        rows = min(num_samples, _gallery_rows(num_features))
        similarities = max(LEAST_ROWS * rows, min(PART_VALUES, num_samples * rows))
        return 8 * rows * num_features + 8 * similarities + 32 * num_samples

    @property
    def options(self) -> dict[str, int | str]:
        """The number of training samples and the kind of targets."""
        return {"num_samples": self.num_samples, "kind": self.kind}

    @classmethod
    def grid(cls, num_samples: int) -> tuple[Settings, ...]:
        """The usual 20 neighbors and temperature 0.07 first."""
        pairs = product([k for k in NEIGHBOURS if k <= max(1, num_samples)], TEMPERATURES)
        return tuple({"k": k, "temperature": temperature} for k, temperature in pairs)

    @classmethod
    def default(cls) -> Settings:
        """A cautious choice for one sample of each class."""
        return {"k": 1, "temperature": 0.07}

    @classmethod
    def fit(
        cls,
        features: Tensor,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Keep the samples, once for all members."""
        return cls._of(F.normalize(features, dim=1), targets, size, task, settings)

    @classmethod
    def fit_blocks(
        cls,
        features: Features,
        targets: Tensor,
        size: tuple[int, int],
        task: Task,
        settings: Sequence[Settings],
    ) -> Self:
        """Keep the samples in a temporary file, once for all members.

        Raises:
            RequestError: the disk has no room for the file.
        """
        head = cls._of(write_gallery(features), targets, size, task, settings)
        head.mapped = True
        return head

    @classmethod
    def _of(
        cls, gallery: Tensor, targets: Tensor, size: tuple[int, int], task: Task, settings: Sequence[Settings]
    ) -> Self:
        members, device = len(settings), targets.device
        with torch.device("meta"):
            head = cls(*size, task.num_outputs, (0.0,) * members, num_samples=len(gallery), kind=task.kind)
        state = {
            "gallery": gallery.expand(members, -1, -1),
            "targets": targets.expand(members, *targets.shape),
            "k": torch.tensor([int(values["k"]) for values in settings], device=device),
            "temperature": torch.tensor([values["temperature"] for values in settings], device=device),
        }
        head.load_state_dict(state, assign=True)
        return head.eval()

    def member(self, index: int) -> "KnnHead":
        """Return one member, M = 1, on the same memory."""
        alone = super().member(index)
        assert isinstance(alone, KnnHead)
        alone.mapped = self.mapped
        return alone

    def prepare(self, x: Tensor, dropout: bool, generator: torch.Generator | None) -> Tensor:
        """Bring the concatenated tokens to length 1: ``[B, F]``."""
        return F.normalize(x.flatten(1).to(self.targets.device), dim=1)

    def classify(self, inputs: Tensor) -> Tensor:
        """Vote: logits, or averages of numbers, ``[M, B, O]``."""
        values, indices = self._nearest(inputs)
        outputs = values.new_empty(self.num_members, len(inputs), self.num_classes)
        members = zip(self.k.tolist(), self.temperature.tolist(), outputs, strict=True)
        for k, temperature, own in members:
            own.copy_(self._vote(values[:, :k], indices[:, :k], temperature))
        return outputs

    def _nearest(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and gallery positions of the K nearest, ``[B, K]`` each, in blocks, since B x N cosines may be terabytes."""
        if self.mapped:
            return self._nearest_in_parts(inputs)
        # The members' copies are one: they were fitted together, or there is one member.
        gallery = self.gallery[0].T.to(inputs.dtype)
        neighbors = min(int(self.k.max()), self.num_samples)
        rows = min(len(inputs), _block_rows(self.num_samples))
        # One buffer for all blocks: the allocator does not reuse the memory of freed blocks between results that stay.
        similarity = inputs.new_empty(rows, self.num_samples)
        values = inputs.new_empty(len(inputs), neighbors)
        indices = torch.empty(len(inputs), neighbors, dtype=torch.int64, device=inputs.device)
        for start in range(0, len(inputs), max(1, rows)):
            part = inputs[start : start + rows]
            block, stop = similarity[: len(part)], start + len(part)
            torch.mm(part, gallery, out=block)
            torch.topk(block, neighbors, dim=1, out=(values[start:stop], indices[start:stop]))
        return values, indices

    def _nearest_in_parts(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from a gallery in a file: part by part, each compared with all of `inputs` before the next is read."""
        neighbors = min(int(self.k.max()), self.num_samples)
        values = inputs.new_empty(len(inputs), 0)
        indices = torch.empty(len(inputs), 0, dtype=torch.int64, device=inputs.device)
        size = _gallery_rows(inputs.shape[1])
        for start in range(0, self.num_samples, size):
            part = self.gallery[0, start : start + size]
            on_device = part.to(inputs.device, inputs.dtype)
            found, places = self._nearest_of(inputs, on_device, min(neighbors, len(part)))
            values, order = torch.cat([values, found], 1).topk(min(neighbors, start + len(part)), dim=1)
            indices = torch.cat([indices, places + start], 1).gather(1, order)
            release_pages(part)
        return values, indices

    def _nearest_of(self, inputs: Tensor, part: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
        """Return cosines and positions of the nearest in a part of the gallery, ``[B, K]`` each."""
        rows = max(LEAST_ROWS, PART_VALUES // len(part))
        found = [(block @ part.T).topk(neighbors, dim=1) for block in torch.split(inputs, rows)]
        return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])

    def _vote(self, similarity: Tensor, neighbors: Tensor, temperature: float) -> Tensor:
        """``[B, O]`` from the k nearest of B samples."""
        weights = (similarity / temperature).softmax(1)
        if self.kind == SINGLE_LABEL:
            votes = weights.new_zeros(len(weights), self.num_classes)
            votes.scatter_add_(1, self.targets[0][neighbors], weights)
            return ((1 - FLOOR) * votes + FLOOR / self.num_classes).log()
        average = weights.new_empty(len(weights), self.num_classes)
        rows = max(1, BLOCK_VALUES // (neighbors.shape[1] * self.num_classes))
        for start in range(0, len(weights), rows):
            part = slice(start, start + rows)
            neighbor_targets = self.targets[0][neighbors[part]].to(weights.dtype)
            average[part] = torch.einsum("bk,bko->bo", weights[part], neighbor_targets)
        return average if self.kind == REGRESSION else average.logit(eps=FLOOR)


def _gallery_rows(num_features: int) -> int:
    """Return the samples of a gallery in a file that are compared at once."""
    return max(LEAST_ROWS, PART_BYTES // (4 * num_features))


def _block_rows(num_samples: int) -> int:
    """Return the number of samples that are compared with the gallery at once."""
    return max(LEAST_ROWS, BLOCK_VALUES // num_samples)
