"""`featcache.info`: what a cache is, holds and comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featcache.api.types import CacheName, Roots, roots_of, text_of
from featcache.store.address import is_address, parse_address
from featcache.store.catalogue import Entry, completed_last, report_unreadable, roots, select
from featcache.store.corrections import warnings_of
from featcache.store.files import JsonObject
from featcache.store.inventory import Block, Inventory
from featcache.store.partial_copy import PartialCopy, describe_partial
from featcache.store.preprocessing import preprocessing_text
from featcache.store.progress import Reporter
from featcache.store.reading.content import SharedImages, shared_images
from featcache.store.spec import CacheSpec
from featcache.store.targets import REGRESSION, UNLABELED, Targets
from featcache.terminal.console import ConsoleReporter


@dataclass(frozen=True)
class CacheInfo:
    """Description of a cache: its values, its content and its origin."""

    path: str
    """Folder of the cache, or its address on a remote."""
    key: str
    complete: bool
    """Whether the extraction has finished; true of a partial copy of a complete cache."""
    spec: CacheSpec
    """Backbone, dataset and types of the values: everything that the key is the digest of."""
    inventory: Inventory
    """Splits, arrays, layers and token kinds; of a partial copy, those that are here."""
    format_version: int
    """Version of the on-disk format that a reader has to know."""
    num_blocks: int
    missing_blocks: Sequence[Block] = ()
    """Blocks that are not committed yet."""
    provenance: JsonObject = field(default_factory=dict)
    """How the cache was made; empty while it is incomplete."""
    warnings: Sequence[str] = ()
    """Corrections in later versions of featcache that concern the values of this cache."""
    class_counts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Samples of each class by split; empty for regressions and without labels, for incomplete caches and on remotes."""
    skipped: int | None = None
    """Samples without features; None for incomplete caches and on remotes."""
    shared_images: Sequence[SharedImages] = ()
    """Images that two splits share, pixel for pixel; not looked for in incomplete caches and on remotes."""
    state: str | None = None
    """Of a copy or a remote: whether the cache is partial, borrowed or on a remote."""
    origin: str | None = None
    """Of a copy that was pulled in part or borrowed: the address that it came from."""
    borrowed: bool | None = None
    """Of such a copy: whether it may be removed when others need its room."""
    digest: str | None = None
    """Of a cache on a remote: digest of its manifest."""

    @property
    def targets(self) -> Targets:
        """Kind, names and units of the targets."""
        return self.inventory.targets

    @property
    def preprocessing(self) -> str | None:
        """Description of what was done to an image; None for a backbone of your own, whose spec has it in a form of its own."""
        backbone = self.spec.backbone
        return preprocessing_text(backbone.preprocessing, backbone.image_size)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays in bytes."""
        return self.inventory.num_bytes

    def to_dict(self) -> JsonObject:
        """Return everything as plain JSON values, as ``featcache info --json`` prints it."""
        of_copy = {
            "state": self.state,
            "origin": self.origin,
            "borrowed": self.borrowed,
            "digest": self.digest,
        }
        return {
            "path": self.path,
            "key": self.key,
            "complete": self.complete,
            **{name: value for name, value in of_copy.items() if value is not None},
            "blocks": self.num_blocks,
            "missing_blocks": [[block.split, block.index] for block in self.missing_blocks],
            "bytes": self.num_bytes,
            "preprocessing": self.preprocessing,
            "spec": self.spec.to_dict() | {"format_version": self.format_version},
            "inventory": self.inventory.to_dict(),
            "targets": self.targets.describe(),
            "class_counts": {split: list(counts) for split, counts in self.class_counts.items()},
            "skipped": self.skipped,
            "shared_images": [shared.to_dict() for shared in self.shared_images],
            "provenance": self.provenance,
            "warnings": list(self.warnings),
        }


def info(cache: CacheName | None = None, *, root: Roots = (), progress: bool = True) -> CacheInfo:
    """Tell what a cache is, holds and comes from; of a cache on a remote, only its documents are fetched.

    Args:
        cache: an open cache; or its folder, its key or the beginning of one, ``DATASET/MODEL-KEY``, or its address on a
            remote; the cache that was completed last if not given.
        root: root, or several, that the cache is looked for in; ``FEATCACHE_ROOT`` if not given.
        progress: show messages on stderr, such as the folders that cannot be read.

    Raises:
        CacheNotFoundError: there is no cache; the message lists what there is.
        RequestError: several caches match; the message lists them.
        RemoteError: the remote cannot be reached or refuses.
        CacheError: its metadata are damaged.

    Example:
        >>> featcache.info("0123456789ab").inventory.splits["train"].num_samples  # doctest: +SKIP
    """
    name = None if cache is None else text_of(cache)
    return describe(name, roots_of(root), ConsoleReporter(quiet=not progress))


def describe(cache: str | None, root: Sequence[Path], reporter: Reporter) -> CacheInfo:
    """Describe a cache under the roots or on a remote; without a name, the cache that was completed last."""
    if cache and is_address(cache):
        return _of_remote(cache)
    search = roots(root)
    if not cache:
        report_unreadable(search, reporter)
    return _of_entry(select(search, cache) if cache else completed_last(search))


def _of_entry(entry: Entry) -> CacheInfo:
    cache = entry.cache
    manifest = cache.manifest
    state = origin = borrowed = None
    held = PartialCopy.read(entry.path)
    if held is not None:
        part = (
            describe_partial(manifest.inventory, manifest.full_inventory) if manifest.whole else "all of it"
        )
        state = f"{'borrowed' if held.borrowed else 'a partial copy'}: {part}"
        origin, borrowed = held.origin, held.borrowed
    return CacheInfo(
        path=str(entry.path),
        key=cache.key,
        complete=entry.complete,
        spec=cache.spec,
        inventory=cache.inventory,
        format_version=manifest.full_inventory.format_version,
        num_blocks=len(cache.inventory.blocks()),
        missing_blocks=manifest.missing_blocks(),
        provenance=cache.provenance,
        warnings=warnings_of(cache.spec, cache.inventory.targets, cache.provenance),
        class_counts=_class_counts(entry),
        skipped=sum(int((~split.valid()).sum()) for split in cache.values()) if entry.complete else None,
        shared_images=list(shared_images(cache)) if entry.complete else [],
        state=state,
        origin=origin,
        borrowed=borrowed,
    )


def _class_counts(entry: Entry) -> dict[str, list[int]]:
    """Return the samples of every class, by split; of a complete cache that has classes."""
    cache = entry.cache
    if not entry.complete or cache.inventory.target_kind in (REGRESSION, UNLABELED):
        return {}
    return {
        name: cache.inventory.targets.counts(split.labels(), split.valid()).tolist()
        for name, split in cache.items()
    }


def _of_remote(address: str) -> CacheInfo:
    from featcache.store.provenance import PROVENANCE_FILE
    from featcache.store.transfer.catalogue import find_cache, not_found
    from featcache.store.transfer.manifests import fetch_manifest, fetch_sealed

    remote, name = find_cache(parse_address(address))
    with remote:
        found = fetch_manifest(remote, name)
        if found is None:
            raise not_found(remote, name)
        manifest = found.manifest
        provenance = fetch_sealed(remote, f"{name}/{PROVENANCE_FILE}") or {}
        return CacheInfo(
            path=remote.where(str(name)),
            key=name.key,
            complete=True,
            spec=manifest.spec,
            inventory=manifest.inventory,
            format_version=manifest.full_inventory.format_version,
            num_blocks=len(manifest.blocks),
            provenance=provenance,
            warnings=warnings_of(manifest.spec, manifest.inventory.targets, provenance),
            state="complete, on a remote",
            digest=found.digest,
        )
