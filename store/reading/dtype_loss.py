"""The loss of a stored type: stored features against exact ones, by layer and token kind.

Shapes: B rows, L layers, K tokens, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from featcache.store.files import JsonObject

Features = npt.NDArray[np.float32]
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class LayerLoss:
    """Loss of one token kind in one layer of one array, over rows of all splits.

    Differences are relative: length of the difference of two token vectors over the length of the exact one.
    """

    array: str
    layer: str
    token: str
    """Token kind; the group, such as ``patches``, where the tokens are positions."""
    mean_relative: float
    """Mean difference between stored and exact vectors."""
    largest_relative: float
    """Largest difference."""
    pass_relative: float
    """Mean difference between stored vectors and exact ones in the stored type: the part that comes from another device or batch, and
    not from the type."""
    clipped: float
    """Part of the exact values that lie outside the range of int8; 0 for other types."""

    def to_dict(self) -> JsonObject:
        """Return the loss as plain JSON values; a difference that is not finite is None."""
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass
class _LayerSum:
    """Sums of one layer over rows, each ``[K]``."""

    loss: npt.NDArray[np.float64]
    of_pass: npt.NDArray[np.float64]
    clipped: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float64]
    rows: int = 0

    @classmethod
    def zeros(cls, num_tokens: int) -> "_LayerSum":
        loss, of_pass, clipped, largest = np.zeros((4, num_tokens))
        return cls(loss, of_pass, clipped, largest)


class LossSum:
    """Sums over the rows of one array, by layer and token. Splits may hold different layers of an array.

    Args:
        tokens: names of the K tokens.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tuple(tokens)
        self._sums: dict[str, _LayerSum] = {}

    def add(
        self,
        layers: Sequence[str],
        exact: Features,
        stored: Features,
        again: Features,
        clipped: npt.NDArray[np.bool_],
    ) -> None:
        """Add rows.

        Args:
            layers: names of the L layers.
            exact: ``[B, L, K, D]``, before they are rounded to the stored type.
            stored: the same rows as they come out of the cache.
            again: `exact` as it comes out of the stored type.
            clipped: which values int8 clips.
        """
        lengths = np.maximum(np.linalg.norm(exact, axis=-1), TINY)
        loss, of_pass = (
            # NaN would pass for small: it compares as False with everything.
            np.nan_to_num(np.linalg.norm(stored - other, axis=-1) / lengths, nan=np.inf)
            for other in (exact, again)
        )
        beyond = clipped.mean(-1)
        for index, layer in enumerate(layers):
            sums = self._sums.setdefault(layer, _LayerSum.zeros(len(self._tokens)))
            sums.rows += len(exact)
            sums.loss += loss[:, index].sum(0)
            sums.largest = np.maximum(sums.largest, loss[:, index].max(0, initial=0))
            sums.of_pass += of_pass[:, index].sum(0)
            sums.clipped += beyond[:, index].sum(0)

    def losses(self, array: str) -> Iterator[LayerLoss]:
        """Yield the loss of every layer and token kind of the array named `array`; positions of one kind count as one."""
        for layer, sums in self._sums.items():
            rows = max(1, sums.rows)
            for name, at in self._kinds():
                yield LayerLoss(
                    array,
                    layer,
                    name,
                    float(sums.loss[at].mean() / rows),
                    float(sums.largest[at].max()),
                    float(sums.of_pass[at].mean() / rows),
                    float(sums.clipped[at].mean() / rows),
                )

    def _kinds(self) -> list[tuple[str, slice]]:
        stems = {name.rstrip("0123456789").rstrip("_") for name in self._tokens}
        if len(stems) == 1 and len(self._tokens) > 1:  # ``patch0``, ``patch1``, ...
            return [(f"{stems.pop()}, {len(self._tokens)} positions", slice(None))]
        return [(name, slice(k, k + 1)) for k, name in enumerate(self._tokens)]


def describe_loss(losses: Sequence[LayerLoss], rows: int) -> str:
    """Return the loss over all layers and token kinds in one line."""
    mean = sum(loss.mean_relative for loss in losses) / len(losses)
    largest = max(loss.largest_relative for loss in losses)
    return (
        f"loss of the stored type on {rows:,} samples: {mean:.3g} of a token vector's length on average over layers and token kinds, "
        f"{largest:.3g} at most"
    )
