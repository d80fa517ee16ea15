"""`featcache.open`."""

from collections.abc import Sequence

from featcache.api.types import PathLike
from featcache.store.address import is_address, parse_address
from featcache.store.catalogue import roots
from featcache.store.reading.reader import Cache, open_cache


def open(
    directory: PathLike,
    *,
    allow_partial: bool = False,
    splits: Sequence[str] = (),
    layers: str | None = None,
    taps: Sequence[str] = (),
    patches: bool = True,
) -> Cache:
    """Open a cache for reading; nothing is loaded until it is asked for.

    The address of a cache on a remote (``s3://bucket/team/flowers/vit-l-14-...``) is fetched into the first root first,
    as far as the local copy lacks it; the arguments below say how much. Such borrowed copies are removed when others
    need their room (``FEATCACHE_BORROWED``, 50 GB if not set).

    Args:
        directory: folder of the cache, the one that holds manifest.json (`featcache ls` prints it), or an address.
        allow_partial: also open a cache whose extraction has not finished.
        splits: of an address, the splits that are needed; all if empty.
        layers: of an address, a layer set or a list such as ``0,6,final``; all if not given.
        taps: of an address, the taps that are needed; all if empty.
        patches: of an address, whether patch tokens are needed.

    Raises:
        CacheNotFoundError: there is no cache.
        RemoteError: the remote cannot be reached or refuses.
        IncompleteCacheError: the extraction has not finished.
        CacheError: its metadata are damaged.

    Example:
        >>> train = featcache.open("caches/flowers/vit-l-14-0123456789ab")["train"]  # doctest: +SKIP
        >>> features = train.load(["11", "final"], ["cls"])  # [N, 2, 1, D]          # doctest: +SKIP
    """
    if is_address(str(directory)):
        from featcache.store.transfer.borrow import borrow
        from featcache.store.transfer.selection import CacheSelection

        choice = CacheSelection(tuple(splits), layers, tuple(taps), patches)
        directory = borrow(
            parse_address(str(directory)),
            roots(),
            lambda whole: choice.of(whole.inventory, whole.spec.backbone.num_layers),
        )
    return open_cache(directory, allow_partial=allow_partial)
