"""`featcache.ls`: the caches there are, under the roots or on a remote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.api.types import Roots, roots_of
from featcache.extraction.models.names import model_names
from featcache.store.address import parse_address
from featcache.store.catalogue import Entry, Unreadable, has_model_name, scan, slug, unreadable
from featcache.store.catalogue.summary import Summary, summarize
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject

if TYPE_CHECKING:
    from featcache.store.transfer.catalogue import CatalogueEntry
    from featcache.store.transfer.remotes.base import Remote


@dataclass(frozen=True)
class CacheListing:
    """One cache in a listing."""

    dataset: str | None
    """Slug of the dataset's name; like `model` and `key` None for a folder that cannot be read and is not called so."""
    model: str | None
    """Slug of the model's name."""
    key: str | None
    state: str
    """``complete``, ``partial (...)``, ``incomplete (...)``, ``damaged``, ``unreadable``, or ``being pushed``."""
    path: Path | None = None
    """Folder of the cache; None on a remote."""
    root: Path | None = None
    """The root that the folder was found under."""
    address: str | None = None
    """Address of the cache on a remote."""
    samples: Mapping[str, int] | None = None
    """Samples by split; like the next three None where they are not known."""
    num_layers: int | None = None
    """Layers that are cached: the most that any split has."""
    num_bytes: int | None = None
    dtype: str | None = None
    """Stored type of the features; None on a remote, whose listing does not tell."""
    modified: float | None = None
    """Seconds since the epoch when the cache was completed, or pushed if the remote tells."""
    error: str | None = None
    """Reason why a cache is damaged or unreadable."""

    def to_dict(self) -> JsonObject:
        """Return the entry as plain JSON values, as ``featcache ls --json`` prints it."""
        document: JsonObject = {"dataset": self.dataset, "model": self.model, "key": self.key}
        if self.address is None:
            document |= {"path": str(self.path), "root": str(self.root)}
        else:
            document["address"] = self.address
        document["state"] = self.state
        if self.samples is not None:
            document |= {
                "samples": dict(self.samples),
                "layers": self.num_layers,
                "bytes": self.num_bytes,
                **({"dtype": self.dtype} if self.dtype is not None else {}),
                "modified": self.modified,
            }
        return document if self.error is None else {**document, "error": self.error}


def ls(
    remote: str | Path | None = None,
    *,
    model: str | None = None,
    dataset: str | None = None,
    root: Roots = (),
) -> list[CacheListing]:
    """List the caches under the roots, or those that were pushed to a remote.

    A cache that two roots hold is listed once, where it is read from.

    Args:
        remote: address of a remote, or a shared folder that caches were pushed to; the roots if not given.
        model: only caches whose model's name contains this, or that go by it otherwise.
        dataset: only caches whose dataset's name contains this.
        root: root, or several; ``FEATCACHE_ROOT`` if not given.

    Raises:
        RequestError: the address, or a root, is wrong.
        RemoteError: the remote cannot be reached or refuses.

    Example:
        >>> [f"{one.dataset}/{one.path.name}" for one in featcache.ls(model="dinov2")]  # doctest: +SKIP
    """
    if remote is not None:
        return list_remote(str(remote), model, dataset).caches
    return list_roots(roots_of(root), model, dataset)


def list_roots(search: list[Path], model: str | None, dataset: str | None) -> list[CacheListing]:
    """List the caches under the roots, then the folders that cannot be read."""
    found = [_of_entry(entry) for entry in scan(search) if _matches(entry, model, dataset)]
    return found + [
        _of_unreadable(folder) for folder in unreadable(search) if _may_match(folder, model, dataset)
    ]


@dataclass(frozen=True)
class RemoteListing:
    """The caches on a remote."""

    where: str
    """Address of the remote."""
    folder: Path | None
    """The remote itself, where it is a folder."""
    caches: list[CacheListing]


def list_remote(address: str, model: str | None, dataset: str | None) -> RemoteListing:
    """List what a remote holds, by one listing of its files."""
    from featcache.store.network.concurrency import retry
    from featcache.store.transfer.catalogue import read_catalogue, search
    from featcache.store.transfer.remotes import open_remote

    with open_remote(parse_address(address)) as remote:
        catalogue = retry(lambda: read_catalogue(remote))
        found = search(catalogue.entries, model, dataset, model_names(model) if model else ())
        caches = [_of_catalogue(entry, remote) for entry in found]
        complete = {entry.name for entry in catalogue.entries}
        if not (model or dataset):
            pushing = dict.fromkeys(name for name, _ in catalogue.pushing if name not in complete)
            caches += [
                CacheListing(
                    name.dataset, name.model, name.key, "being pushed", address=remote.where(str(name))
                )
                for name in pushing
            ]
        place = remote.address
        return RemoteListing(remote.where(), Path(place.path) if place.scheme == "file" else None, caches)


def _of_catalogue(entry: "CatalogueEntry", remote: "Remote") -> CacheListing:
    return CacheListing(
        entry.name.dataset,
        entry.name.model,
        entry.name.key,
        "complete",
        address=remote.where(str(entry.name)),
        samples={name: rows for name, rows in (("train", entry.train), ("test", entry.test)) if rows},
        num_layers=entry.num_layers,
        num_bytes=entry.num_bytes,
        modified=entry.modified,
    )


def _of_unreadable(folder: Unreadable) -> CacheListing:
    return CacheListing(
        folder.dataset or None,
        folder.model or None,
        folder.key or None,
        "unreadable",
        folder.path,
        folder.root,
        error=f"{folder.path} cannot be read ({folder.reason})",
    )


def _of_entry(entry: Entry) -> CacheListing:
    names = (entry.dataset, entry.model, entry.key)
    try:
        summary = summarize(entry)
        modified = entry.modified
    except CacheError as error:
        return CacheListing(*names, "damaged", entry.path, entry.root, error=str(error))
    except OSError as error:
        return CacheListing(*names, "unreadable", entry.path, entry.root, error=str(error))
    inventory = summary.inventory
    return CacheListing(
        *names,
        _state(entry, summary),
        entry.path,
        entry.root,
        samples={split.name: split.num_samples for split in inventory.splits.values()},
        num_layers=summary.num_layers,
        num_bytes=inventory.num_bytes,
        dtype=summary.dtype,
        modified=modified,
    )


def _state(entry: Entry, summary: Summary) -> str:
    if entry.complete:
        return f"partial ({summary.part})" if summary.part else "complete"
    total = len(summary.inventory.blocks())
    return f"incomplete ({total - summary.missing_blocks} of {total} blocks)"


def _matches(entry: Entry, model: str | None, dataset: str | None) -> bool:
    if dataset and dataset.lower() not in entry.dataset.lower():
        return False
    return not model or model.lower() in entry.model or has_model_name(entry, model_names(model))


def _may_match(folder: Unreadable, model: str | None, dataset: str | None) -> bool:
    """Return whether an unreadable folder may hold a matching cache; a folder above caches always may."""
    if dataset and folder.dataset and dataset.lower() not in folder.dataset.lower():
        return False
    names = model_names(model) if model else ()
    return not model or not folder.model or model.lower() in folder.model or folder.model in map(slug, names)
