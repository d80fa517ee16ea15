"""`featcache.push` and `featcache.pull`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featcache.api.types import CacheName, PathLike, Roots, names_of, roots_of, text_of
from featcache.store.address import parse_address
from featcache.store.catalogue import select
from featcache.terminal.console import ConsoleReporter

if TYPE_CHECKING:
    from featcache.store.transfer.pull import PullResult
    from featcache.store.transfer.push import PushResult


def push(
    cache: CacheName, remote: PathLike, *, force: bool = False, root: Roots = (), progress: bool = True
) -> "PushResult":
    """Copy a cache to a remote, where it counts when the last file has arrived; what is there already does not move again.

    Args:
        cache: an open cache; or its folder, its key or the beginning of one, or ``DATASET/MODEL-KEY``.
        remote: ``s3://``, ``gs://``, ``az://``, ``hf://`` or ``ssh://`` and so on, or a shared folder.
        force: replace other values that the remote has under the same key.
        root: root, or several, that the cache is looked for in; ``FEATCACHE_ROOT`` if not given.
        progress: show messages and progress on stderr.

    Raises:
        CacheNotFoundError: there is no cache; the message lists what there is.
        IncompleteCacheError, PartialCacheError: the cache is not whole.
        CacheError: a local file is damaged, or the remote holds other values; nothing there has changed.
        CacheBusyError: somebody else is pushing other values of this cache.
        RequestError: the address is wrong, or the remote is read-only.
        RemoteError: the remote cannot be reached, refuses, or breaks off for too long.

    Example:
        >>> featcache.push("0123456789ab", "s3://bucket/team").address  # doctest: +SKIP
    """
    from featcache.store.transfer.push import push as run_push

    address = parse_address(str(remote))
    entry = select(roots_of(root), text_of(cache), exact=True)
    return run_push(entry.path, address, force=force, reporter=ConsoleReporter(quiet=not progress))


def pull(
    cache: PathLike,
    *,
    splits: str | Sequence[str] = (),
    layers: str | None = None,
    taps: str | Sequence[str] = (),
    patches: bool = True,
    views: str | Sequence[str] = (),
    check: bool = False,
    root: Roots = (),
    progress: bool = True,
) -> "PullResult":
    """Fetch a cache from a remote, or a part of it; every file is checked against its digest as it arrives.

    A part can be completed later by another pull, and what is here already does not move again.

    Args:
        cache: address of the remote, then ``DATASET/MODEL-KEY`` or the beginning of a key.
        splits: splits, such as ``test``; all if empty.
        layers: a layer set or a list such as ``0,6,final``; all if not given.
        taps: taps, such as ``norm2`` or ``mlp``; all if empty.
        patches: whether to fetch patch tokens.
        views: views of the images, such as ``plain,flip``; all if empty.
        check: hold what is here to its digests too, and fetch again what is damaged.
        root: root, or several, of which the first is written to; ``FEATCACHE_ROOT`` if not given.
        progress: show messages and progress on stderr.

    Raises:
        CacheNotFoundError: the remote has no such cache; the message lists what there is.
        RequestError: the address, or what is chosen, is wrong.
        RemoteError: the remote cannot be reached, refuses, or breaks off for too long.
        CacheError: what the remote sends is not what it should be; nothing of it was kept.
        CacheBusyError: another process is at work on the cache.

    Example:
        >>> cache = featcache.open(featcache.pull("s3://bucket/team/0123456789ab", layers="last").path)  # doctest: +SKIP
    """
    from featcache.store.transfer.pull import pull as run_pull
    from featcache.store.transfer.selection import CacheSelection

    choice = CacheSelection(names_of(splits), layers, names_of(taps), patches, names_of(views))
    reporter = ConsoleReporter(quiet=not progress)
    return run_pull(parse_address(str(cache)), roots_of(root), choice, check=check, reporter=reporter)
