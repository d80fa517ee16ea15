"""Selection of the splits, layers and token kinds to export."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.convert.steps import row_steps
from featcache.store.errors import UnknownNameError
from featcache.store.layers import parse_layers, parse_tokens
from featcache.store.reading.chunks import Array
from featcache.store.reading.reader import Cache
from featcache.store.reading.split import SplitReader


@dataclass(frozen=True)
class Part:
    """One split as it is exported. N samples, L layers, K token kinds, D width."""

    name: str
    reader: SplitReader
    layers: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.reader.num_samples

    @property
    def dtype(self) -> str:
        """Value type of the features, such as ``bfloat16``."""
        return self.reader.dtype

    @property
    def stored_dtype(self) -> np.dtype[np.generic]:
        """numpy type that the features come in."""
        return DTYPES[self.dtype].stored

    @property
    def layer_bytes(self) -> int:
        """Bytes of one row of one layer."""
        return len(self.tokens) * self.reader.width * self.stored_dtype.itemsize

    @property
    def id_bytes(self) -> int:
        """Bytes that a sample id takes."""
        return self.reader.inventory.arrays["sample_id"].shape[1]

    @property
    def label(self) -> ArrayInfo | None:
        """Array of the labels in the cache; None if it has no labels."""
        return self.reader.inventory.arrays.get("label")

    @property
    def num_bytes(self) -> int:
        """Bytes of the split, columns included."""
        label_bytes = self.label.chunk_bytes // self.label.block_rows if self.label else 0
        return self.num_samples * (self.layer_bytes * len(self.layers) + self.id_bytes + 1 + label_bytes)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Return the chosen layers by the array that holds them: ``{"norm2": ("0", ...), "final": ("final",)}``."""
        # Other arrays, of other taps, token groups and views, hold other values of the same layers.
        arrays = {a.name: tuple(x for x in self.layers if x in a.layers) for a in self.reader.token_arrays}
        return {name: layers for name, layers in arrays.items() if layers}

    def read(self, layers: Sequence[str]) -> Iterator[tuple[int, int, Array]]:
        """Read the rows of some layers in steps: first row, row behind the last, ``[B, L, K, D]``."""
        for start, stop in row_steps(0, self.num_samples, self.layer_bytes * len(layers)):
            # Read, not mapped: every page is needed once, and mapped ones would count as memory of this process.
            yield start, stop, self.reader.gather(np.arange(start, stop), layers, self.tokens, method="read")

    def columns(self) -> dict[str, Array]:
        """Return ``label`` as `Targets` says, if there are labels, ``sample_id`` uint8 ``[N, bytes]``, ``valid`` bool ``[N]``."""
        return {
            **({"label": self.reader.labels()} if self.label else {}),
            "sample_id": ids_as_bytes(self.reader.sample_ids(), self.id_bytes),
            "valid": self.reader.valid(),
        }


def choose(cache: Cache, layers: str | None, tokens: str | None, splits: Sequence[str]) -> list[Part]:
    """Return the parts to export; what is not named is exported as it is.

    Raises:
        UnknownNameError: the cache does not hold a split, layer or token kind.
    """
    names = list(dict.fromkeys(splits)) or list(cache.inventory.splits)
    parts = []
    for name in names:
        reader = cache[name]
        chosen_layers = parse_layers(layers, cache.spec.backbone.num_layers) if layers else reader.layers
        kinds = parse_tokens(tokens) if tokens else reader.tokens
        for noun, chosen, valid in (
            ("layer", chosen_layers, reader.layers),
            ("token kind", kinds, reader.tokens),
        ):
            for choice in chosen:
                if choice not in valid:
                    raise UnknownNameError(noun, choice, valid, f"(split {name} of the cache holds no other)")
        # In the cache's own order, so that an array never depends on how the request was spelt.
        ordered = tuple(layer for layer in reader.layers if layer in chosen_layers)
        parts.append(Part(name, reader, ordered, tuple(kind for kind in reader.tokens if kind in kinds)))
    return parts


def left_out(parts: Sequence[Part]) -> str | None:
    """Name the token arrays that an export does not write, in one line; None if there are none."""
    names = {
        array.name
        for part in parts
        for array in part.reader.inventory.arrays.values()
        if array.layers and array not in part.reader.token_arrays
    }
    if not names:
        return None
    listed = sorted(names)
    return f"class token and average of the plain view are exported; left out: {', '.join(listed[:8])}{', ...' if len(listed) > 8 else ''}"


def ids_as_bytes(ids: Sequence[str], width: int | None = None) -> Array:
    """Return sample ids as UTF-8 padded with zeros: uint8 ``[N, width]``, by default as wide as the longest."""
    encoded = [sample_id.encode() for sample_id in ids]
    width = max(width or 1, *(len(sample_id) for sample_id in encoded))
    return np.frombuffer(b"".join(sample_id.ljust(width, b"\0") for sample_id in encoded), np.uint8).reshape(
        len(ids), width
    )
