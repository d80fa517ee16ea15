"""Laying out the arrays of a split that is going to be written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featcache.store.arrays import ArrayInfo, block_rows
from featcache.store.inventory import DEFAULT_TAP, SplitInventory
from featcache.store.layers import FINAL
from featcache.store.targets import SINGLE_LABEL, Targets
from featcache.store.token_groups import EMBEDDING, PATCHES, POOLED, array_name, parse_array_name

CONTENT_DIGEST = "content_digest"
CONTENT_DIGEST_BYTES = 16


@dataclass(frozen=True)
class TokenArray:
    """An array of tokens that is wanted in a split."""

    tap: str
    group: str
    layers: tuple[str, ...]
    """Layers to hold, in order."""
    depth: int
    """Layers along the axis, held or not: the number of blocks, or 1 for the final norm."""
    tokens: tuple[str, ...]
    width: int
    view: str = ""
    """View that the array belongs to; empty for the plain one."""
    own_grid: bool = False
    """Whether the view has another number of patches than the plain one."""

    @property
    def name(self) -> str:
        """Name of the array."""
        return array_name(self.tap, self.group, self.view)


def plan_split(
    name: str,
    num_samples: int,
    *,
    layers: Sequence[str],
    tokens: Sequence[str],
    width: int,
    dtype: str,
    sample_id_bytes: int,
    num_layers: int | None = None,
    targets: Targets | None = None,
) -> SplitInventory:
    """Lay out one split of N = `num_samples` rows with the paper's features: `norm2` of some blocks, and `final`.

    Args:
        name: name of the split.
        num_samples: number of rows N.
        layers: blocks to hold, in order; none for the final norm alone, which is always held.
        tokens: token kinds K, in order.
        width: token width D.
        dtype: stored type of the features.
        sample_id_bytes: bytes of the longest sample id.
        num_layers: number of blocks L of the backbone; as many as there are `layers` if not given.
        targets: what labels are; class indices if not given.
    """
    kinds, depth = tuple(tokens), num_layers or len(layers)
    arrays = [
        *([TokenArray(DEFAULT_TAP, POOLED, tuple(layers), depth, kinds, width)] if layers else []),
        TokenArray(FINAL, POOLED, (FINAL,), 1, kinds, width),
    ]
    return plan_arrays(name, num_samples, arrays, width, dtype, sample_id_bytes, targets=targets)


def plan_arrays(
    name: str,
    num_samples: int,
    arrays: Iterable[TokenArray],
    width: int,
    dtype: str,
    sample_id_bytes: int,
    *,
    content_digest: bool = False,
    targets: Targets | None = None,
) -> SplitInventory:
    """Lay out one split of N = `num_samples` rows; arguments as for `plan_split`.

    Args:
        name: name of the split.
        num_samples: number of rows N.
        arrays: the token arrays.
        width: token width D of the backbone; arrays of another width get a dimension name of their own.
        dtype: stored type of the features.
        sample_id_bytes: bytes of the longest sample id.
        content_digest: whether every row tells the digest of the decoded image.
        targets: what labels are; class indices if not given.
    """
    rows, labels = block_rows(num_samples), targets or Targets(SINGLE_LABEL, ())

    def column(array: str, shape: tuple[int, ...], stored: str, *names: str) -> ArrayInfo:
        return ArrayInfo(array, (num_samples, *shape), rows, stored, ("sample", *names))

    planned = [
        ArrayInfo(
            token_array.name,
            (num_samples, token_array.depth, len(token_array.tokens), token_array.width),
            rows,
            dtype,
            _dimension_names(token_array, width),
            token_array.layers,
            token_array.tokens,
        )
        for token_array in arrays
    ]
    if labels.labeled:
        planned.append(label_array(num_samples, rows, labels))
    planned += [
        column("sample_id", (sample_id_bytes,), "uint8", "byte"),
        column("valid", (), "bool"),
    ]
    if content_digest:
        planned.append(column(CONTENT_DIGEST, (CONTENT_DIGEST_BYTES,), "uint8", "digest_byte"))
    return SplitInventory(name, num_samples, rows, {array.name: array for array in planned})


def label_array(num_samples: int, block_rows: int, targets: Targets) -> ArrayInfo:
    """Lay out the labels of a split of N = `num_samples` rows.

    Args:
        num_samples: number of rows N.
        block_rows: rows of a block.
        targets: kind and names of the labels, which exist.
    """
    shape, names = (num_samples, *targets.row_shape), ("sample", *targets.dimension_names)
    return ArrayInfo("label", shape, block_rows, targets.dtype, names)


def _dimension_names(array: TokenArray, width: int) -> tuple[str, str, str, str]:
    """Return dimension names; xarray wants one size per name in a group, so arrays of other sizes have names of their own."""
    tap, group = parse_array_name(array.name)
    layer = "final_layer" if array.layers == (FINAL,) else "block"
    token = EMBEDDING if tap == EMBEDDING else "token" if group == POOLED else f"{group}_token"
    if array.own_grid and group == PATCHES:
        token = f"{array.view}_{token}"
    return "sample", layer, token, "channel" if array.width == width else f"{tap}_channel"
