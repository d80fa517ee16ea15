"""The loss of a stored type: stored values against the values that the backbone gives, before they are rounded to this type."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from featcache.recompute.stored_values import StoredArray
from featcache.store.files import JsonObject

Features = npt.NDArray[np.float32]
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class LayerLoss:
    """Loss of one token kind in one layer of one array, over the sampled rows of all splits.

    Differences are relative: length of the difference of two token vectors over the length of the backbone's.
    """

    array: str
    layer: str
    token: str
    """Token kind; the group, such as ``patches``, where the tokens are positions."""
    mean_relative: float
    """Mean difference between stored and recomputed vectors."""
    largest_relative: float
    """Largest difference."""
    pass_relative: float
    """Mean difference between stored vectors and recomputed ones of the stored type: the part that comes from the pass, such as another
    device or batch, and not from the type."""
    clipped: float
    """Part of the recomputed values that lie outside the range of int8; 0 for other types."""

    def to_dict(self) -> JsonObject:
        """Return the loss as plain JSON values; a difference that is not finite is None."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and not np.isfinite(value) else value
            for name, value in values.items()
        }


@dataclass
class LossSum:
    """Sums over the rows of one array, by layer and token kind."""

    layers: Sequence[str]
    tokens: Sequence[str]
    _parts: list[tuple[Features, Features]]
    _clipped: list[npt.NDArray[np.float64]]

    @classmethod
    def empty(cls, layers: Sequence[str], tokens: Sequence[str]) -> "LossSum":
        """Return the sum over no rows."""
        return cls(layers, tokens, [], [])

    def add(self, fresh: Features, stored: StoredArray) -> None:
        """Add rows: `fresh` ``[B, L, K, D]`` float32, and the same rows as they are stored."""
        lengths = np.maximum(np.linalg.norm(fresh, axis=-1), TINY)
        again, clipped = stored.rounded(fresh)
        differences = tuple(
            np.linalg.norm(stored.values - other, axis=-1) / lengths for other in (fresh, again)
        )
        self._parts.append((differences[0], differences[1]))
        self._clipped.append(clipped.mean((0, 3)))

    def losses(self, array: str) -> Iterator[LayerLoss]:
        """Yield the loss of every layer and token kind; positions of one kind count as one."""
        loss, of_pass = (
            np.nan_to_num(np.concatenate(part), nan=np.inf) for part in zip(*self._parts, strict=True)
        )
        clipped = np.mean(self._clipped, axis=0)
        names = list(self.tokens)
        kinds = [slice(k, k + 1) for k in range(len(names))]
        if len(names) > len(_groups(names)):
            names, kinds = _groups(names), [slice(None)]
        for index, layer in enumerate(self.layers):
            for name, kind in zip(names, kinds, strict=True):
                yield LayerLoss(
                    array,
                    layer,
                    name,
                    float(loss[:, index, kind].mean()),
                    float(loss[:, index, kind].max()),
                    float(of_pass[:, index, kind].mean()),
                    float(clipped[index, kind].mean()),
                )


def _groups(tokens: Iterable[str]) -> list[str]:
    """Return one name for tokens that are positions of one kind (``patch0``, ``patch1``), else all names."""
    names = list(tokens)
    stems = list(dict.fromkeys(name.rstrip("0123456789").rstrip("_") for name in names))
    return [f"{stems[0]}s"] if len(stems) == 1 and len(names) > 1 else names
