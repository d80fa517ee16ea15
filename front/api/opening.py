"""`featcache.open`."""

from collections.abc import Sequence
from pathlib import Path

from featcache.api.types import PathLike, Roots, names_of, roots_of
from featcache.moved import renamed
from featcache.store.address import is_address, parse_address
from featcache.store.catalogue import select
from featcache.store.catalogue.entries import folder_entry
from featcache.store.errors import CacheNotFoundError
from featcache.store.home import expanded
from featcache.store.reading.reader import Cache, open_cache


@renamed(directory="cache")
def open(
    cache: PathLike,
    *,
    allow_partial: bool = False,
    splits: str | Sequence[str] = (),
    layers: str | None = None,
    taps: str | Sequence[str] = (),
    patches: bool = True,
    views: str | Sequence[str] = (),
    root: Roots = (),
) -> Cache:
    """Open a cache for reading; nothing is loaded until it is asked for.

    The address of a cache on a remote (``s3://bucket/team/flowers/vit-l-14-...``) is fetched into the first root first,
    as far as the local copy lacks it; the arguments below say how much. Such borrowed copies are removed when others
    need their room (``FEATCACHE_BORROWED``, 50 GB if not set).

    Args:
        cache: as on the command line: folder of the cache (the one that holds manifest.json), its key or the beginning of
            one, ``DATASET/MODEL-KEY``, or its address on a remote.
        allow_partial: also open a cache whose extraction has not finished.
        splits: of an address, the splits that are needed; all if empty.
        layers: of an address, a layer set or a list such as ``0,6,final``; all if not given.
        taps: of an address, the taps that are needed; all if empty.
        patches: of an address, whether patch tokens are needed.
        views: of an address, the views of the images that are needed, such as ``plain,flip``; all if empty.
        root: root, or several, that the cache is looked for in; ``FEATCACHE_ROOT`` if not given.

    Raises:
        CacheNotFoundError: there is no cache; the message lists what there is.
        RequestError: several caches match; the message lists them.
        RemoteError: the remote cannot be reached or refuses.
        IncompleteCacheError: the extraction has not finished.
        CacheError: its metadata are damaged.

    Example:
        >>> train = featcache.open("flowers/vit-l-14-0123456789ab")["train"]  # doctest: +SKIP
        >>> features = train.load("quarters", "cls+ap")  # [N, 4, 2, D]       # doctest: +SKIP
    """
    if is_address(str(cache)):
        from featcache.store.transfer.borrow import borrow
        from featcache.store.transfer.selection import CacheSelection

        choice = CacheSelection(names_of(splits), layers, names_of(taps), patches, names_of(views))
        folder = borrow(
            parse_address(str(cache)),
            roots_of(root),
            lambda whole: choice.of(whole.inventory, whole.spec.backbone.num_layers),
        )
    else:
        folder = _locate(cache, roots_of(root))
    return open_cache(folder, allow_partial=allow_partial)


def _locate(cache: PathLike, search: list[Path]) -> Path:
    """Return the folder of a local cache; an absolute path is taken as it is, whether a cache is there or not."""
    folder = expanded(cache)
    if folder.is_absolute() or folder_entry(folder) is not None:
        return folder
    try:
        return select(search, str(cache)).path
    except CacheNotFoundError:
        if folder.is_dir():
            return folder  # `open_cache` says what is wrong with it
        raise
