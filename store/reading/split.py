"""Reading one split: whole layers, rows in any order, or shuffled mini-batches.

Shapes: N samples, B rows asked for, L layers, K token kinds, D width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featcache.store.arrays import DTYPES, ArrayInfo
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.inventory import DEFAULT_TAP, Block, SplitInventory
from featcache.store.layers import FINAL, parse_layers, split_tokens
from featcache.store.reading.batches import Batch, BatchOptions, shuffled_batches
from featcache.store.reading.chunks import Array, ChunkFiles
from featcache.store.reading.columns import SplitColumns
from featcache.store.reading.copying import Method, Selection, checked_buffer, checked_rows
from featcache.store.reading.joined_groups import join_groups
from featcache.store.targets import Targets
from featcache.store.token_groups import POOLED, STATISTICS, split_view
from featcache.store.views import PLAIN_VIEW

Names = str | Sequence[str]
"""Names one by one, or as the command line takes them: ``all`` or ``0,6,final`` for layers, ``cls+ap`` for token kinds."""

DEFAULT_MEMORY = 2**30
"""Budget of `SplitReader.batches` in bytes."""


class SplitReader(SplitColumns):
    """The rows of one split. Features come in the type `dtype` unless another is asked for, bfloat16 as its uint16 bits.

    Every method that returns features takes `dtype`: ``float32`` for any cache, ``float16`` for int8 ones, or the stored type (of an int8
    cache the codes). A buffer `out` tells it too.

    ``len(split)`` is N. Maps are made when they are first needed and stay. Works after a fork; a pickled copy makes maps
    of its own.
    """

    def __init__(
        self,
        features: Path,
        inventory: SplitInventory,
        committed: Sequence[Block],
        targets: Targets | None = None,
        tap: str = DEFAULT_TAP,
        group: str = POOLED,
        image_view: str = "",
    ) -> None:
        """Read from the folder features.zarr; only `committed` blocks exist. For `tap`, `group` and `image_view` see `view`.

        Raises:
            UnknownNameError: the split does not hold these features.
            CacheError: the arrays with layers do not fit together.
        """
        super().__init__(
            ChunkFiles(features, inventory, committed, tap, group, image_view),
            features / inventory.name,
            targets,
        )
        self._arguments = (features, inventory, tuple(committed), targets, tap, group, image_view)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the maps out."""
        return SplitReader, self._arguments

    def __len__(self) -> int:
        """Number N of samples."""
        return self.num_samples

    def __bool__(self) -> bool:
        """Return True: a split without samples is a split."""
        return True

    def __array__(self, *args: object, **options: object) -> Array:
        """Refuse to become an array, which would have to guess layers and token kinds.

        Raises:
            TypeError: always; the message says what to call.
        """
        raise TypeError(
            f"a split is no array until layers and token kinds are chosen: call load(layers, tokens), such as "
            f"load('last', {self.tokens[0]!r}), for an array [N, L, K, D], or layer_map(layer) for one layer without a copy"
        )

    def resolve_layers(self, layers: Names) -> tuple[str, ...]:
        """Return the names of layers, given one by one, as a layer set or as a list such as ``0,6,final``.

        Raises:
            UnknownNameError: a name is neither a set nor a layer of the backbone.
            RequestError: a layer is named twice or none, or the split holds the final layer alone, so that it does not
                tell the depth that sets depend on.
        """
        if not isinstance(layers, str):
            return tuple(layers)
        if not self.depth and layers not in ("last", FINAL):
            raise RequestError(
                f"the split holds the final layer alone, and {layers!r} is asked for; ask for 'last'"
            )
        return parse_layers(layers, self.depth)

    @property
    def image_views(self) -> tuple[str, ...]:
        """Names of the views of the images that are held: ``plain``, then such as ``crop1`` or ``flip``."""
        names = {split_view(array.name)[0] for array in self.inventory.arrays.values() if array.layers}
        return (PLAIN_VIEW, *sorted(names - {""}))

    def view(
        self, tap: str = DEFAULT_TAP, group: str = POOLED, image_view: str = PLAIN_VIEW
    ) -> "SplitReader":
        """Return a reader of the same rows at another tap, of another group of tokens, or of another view of the images.

        Its layers are the blocks that are held at the tap, and the final layer where that has the same form.

        Args:
            tap: ``norm2``, ``block``, ``attn``, ``mlp``, ``norm1``, ``final`` or ``embedding``.
            group: ``pooled`` (class token and average), ``registers``, ``patches``, ``grid2``, ``grid4``, ``sd``, ``max``, ``min``
                or ``gem``.
            image_view: one of `image_views`.

        Raises:
            UnknownNameError: the split does not hold them.
        """
        if image_view not in self.image_views:
            raise UnknownNameError("view", image_view, self.image_views, "(the split holds no other)")
        return SplitReader(*self._arguments[:4], tap, group, "" if image_view == PLAIN_VIEW else image_view)

    def of_image_view(self, name: str) -> "SplitReader":
        """Return a reader of the same rows, tap and group of tokens, of the view `name` of the images.

        Raises:
            UnknownNameError: the split does not hold it.
        """
        return self.view(*self._arguments[4:6], name)

    @property
    def depth(self) -> int:
        """Blocks of the backbone, whether they are held or not; 0 where none is held, so that nothing tells."""
        axes = [array.layer_axis for array in self._files.inventory.arrays.values()]
        return max((len(axis) for axis in axes if axis != (FINAL,)), default=0)

    def load(
        self,
        layers: Names,
        tokens: Names,
        out: Array | None = None,
        *,
        dtype: str | None = None,
        view: str | None = None,
    ) -> Array:
        """Read the features of all rows.

        Args:
            layers: layer names in the order wanted, a layer set (``last``, ``mid+last``, ``quarters``, ``all``, ``every``), or
                a list in one text, such as ``0,6,final``.
            tokens: token kinds in the order wanted, or a list in one text, such as ``cls+ap``. Statistics (``cls+ap+max``) go with
                the pooled tokens in `load` and `gather`; `batches` reads one group of tokens, see `view`.
            out: buffer of shape ``[N, L, K, D]`` to read into; made if not given.
            dtype: value type, such as ``float32``; see the class.
            view: view of the images, one of `image_views`; by default that of this reader, which is the plain one.

        Returns:
            The buffer. Rows without features are NaN: those that are not committed, and those whose image did not decode.

        Raises:
            UnknownNameError: a layer, token kind or view is not cached.
            RequestError: a layer set cannot be resolved (see `resolve_layers`), or features cannot be handed out as `dtype`.
            CacheError: a file is missing or of the wrong size.
            ValueError: `out` does not fit.
        """
        if view is not None:
            return self.of_image_view(view).load(layers, tokens, out, dtype=dtype)
        if self._of_several_groups(tokens):
            value_type = self._copier.types.choose(dtype, out)
            return join_groups(
                _listed(tokens),
                lambda group, kinds: self._of_group(group).load(layers, kinds, dtype=value_type),
                out,
            )
        selection = self._select(layers, tokens)
        out = self._buffer(self.num_samples, selection, out, dtype)
        self._copier.read_all(selection, out)
        return out

    def layer_map(self, layer: str) -> Array:
        """Return one layer as a read-only array ``[N, K, D]`` that takes no memory: its files, mapped side by side.

        Other libraries can take it as it is. Where files cannot be mapped, rows are missing or features are int8, it is loaded instead.
        If a file is truncated, or its disk fails, while the array is in use, its rows read as NaN and a line on stderr says
        so; in the page where a truncated file ends, they read as 0.
        Errors as for `load`.
        """
        as_stored = self.stored_dtype == self.dtype
        maps = self._copier.maps([layer], "auto") if as_stored else None
        if maps is not None and self._files.complete:
            return maps.layer(layer)
        loaded = self.load([layer], self.tokens)[:, 0]
        loaded.flags.writeable = False
        return loaded

    def gather(
        self,
        rows: npt.ArrayLike,
        layers: Names,
        tokens: Names,
        out: Array | None = None,
        *,
        method: Method = "auto",
        dtype: str | None = None,
        view: str | None = None,
    ) -> Array:
        """Read the features of some rows, in the order asked; arguments and errors as for `load`.

        Args:
            rows: integer ``[B]``, in any order, repeats allowed.
            layers: as for `load`.
            tokens: as for `load`.
            out: buffer of shape ``[B, L, K, D]``.
            method: how to read.
            dtype: value type; see the class.
            view: as for `load`.

        Raises:
            IndexError: a row is outside the split, or not an integer.
            RequestError: `method` is ``map``, and that is not possible here.
        """
        if view is not None:
            return self.of_image_view(view).gather(rows, layers, tokens, out, method=method, dtype=dtype)
        row_numbers = checked_rows(rows, self.num_samples)
        if self._of_several_groups(tokens):
            value_type = self._copier.types.choose(dtype, out)
            return join_groups(
                _listed(tokens),
                lambda group, kinds: self._of_group(group).gather(
                    row_numbers, layers, kinds, method=method, dtype=value_type
                ),
                out,
            )
        selection = self._select(layers, tokens)
        out = self._buffer(len(row_numbers), selection, out, dtype)
        self._copier.copy(row_numbers, selection, out, self._copier.maps(selection.layers, method))
        return out

    def batches(
        self,
        batch_size: int,
        layers: Names,
        tokens: Names,
        seed: int | Sequence[int],
        memory: int = DEFAULT_MEMORY,
        *,
        rows: npt.ArrayLike | None = None,
        part: tuple[int, int] = (0, 1),
        out: Array | None = None,
        method: Method = "auto",
        dtype: str | None = None,
        view: str | None = None,
    ) -> Iterator[Batch]:
        """Shuffle one epoch: yield ``(rows [B], features [B, L, K, D])``, every row once; errors as for `gather`.

        A budget that holds the whole selection twice gives a full shuffle; a smaller one shuffles within windows
        that are made of short stretches from all over the split (see `epoch_order`). The rows of a batch ascend.

        Args:
            batch_size: B; the last batch may be smaller.
            layers: as for `load`.
            tokens: as for `load`.
            seed: fixes the order, together with all other arguments but `out` and `method`, and with the stored type.
            memory: budget in bytes, for what is read ahead and the batch; at least three batches.
            rows: integer ``[M]``, the rows to visit, each once; all of the split if not given.
            part: ``(i, n)``: the i-th of n workers that share an epoch.
            out: buffer ``[batch_size, L, K, D]`` that every batch is read into; a new one per batch if not given.
            method: how to read.
            dtype: value type; see the class.
            view: as for `load`; the order of an epoch is the same in every view.

        Raises:
            RequestError: the budget is too small, or `batch_size` or `part` make no sense.
        """
        if view is not None:
            return self.of_image_view(view).batches(
                *(batch_size, layers, tokens, seed, memory),
                rows=rows,
                part=part,
                out=out,
                method=method,
                dtype=dtype,
            )
        every = np.arange(self.num_samples)
        row_numbers = every if rows is None else np.unique(checked_rows(rows, self.num_samples))
        selection = self._select(layers, tokens)
        out = None if out is None else self._buffer(batch_size, selection, out, dtype)
        value_type = DTYPES[self._copier.types.choose(dtype, out)].stored
        maps, options = (
            self._copier.maps(selection.layers, method),
            BatchOptions(batch_size, seed, memory, part),
        )
        return shuffled_batches(self._copier, selection, row_numbers, maps, options, out, value_type)

    def _of_several_groups(self, tokens: Names) -> bool:
        """Return whether tokens are asked for that lie in other arrays than those of this reader, which has the pooled ones."""
        return self._arguments[5] == POOLED and any(kind in STATISTICS for kind in _listed(tokens))

    def _of_group(self, group: str) -> "SplitReader":
        return SplitReader(*self._arguments[:5], group, self._arguments[6])

    def _select(self, layers: Names, tokens: Names) -> Selection:
        return Selection.of(self._files, self.resolve_layers(layers), _listed(tokens))

    def _buffer(self, rows: int, selection: Selection, out: Array | None, dtype: str | None) -> Array:
        shape = (rows, *selection.row_shape(self._files))
        value_type = DTYPES[self._copier.types.choose(dtype, out)].stored
        try:
            return checked_buffer(shape, value_type, out)
        except MemoryError:
            # A forged shape? Then the files do not have its size.
            for layer in selection.layers if self._files.committed else ():
                with self._files.open(*_first_file(self._files, layer)):
                    pass
            raise RequestError(
                f"{self._folder}: rows, layers and tokens {list(shape)} do not fit in memory; ask for fewer, or use batches"
            ) from None


def _listed(tokens: Names) -> Sequence[str]:
    return split_tokens(tokens) if isinstance(tokens, str) else tokens


def _first_file(files: ChunkFiles, layer: str) -> tuple[ArrayInfo, int, int]:
    array, index = files.locate(layer)
    return array, files.committed[0].index, index
