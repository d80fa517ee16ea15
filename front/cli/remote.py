"""``featcache ls``, ``info`` and ``rm`` of what lies on a remote."""

import sys
import time
from dataclasses import asdict

import click

from featcache.console import duration, print_json, print_table, size
from featcache.store.errors import RequestError
from featcache.store.files import JsonObject
from featcache.store.transfer.address import parse_address

COLUMNS = ("dataset", "model", "key", "state", "train", "test", "layers", "size", "age")


def list_remote(remote_address: str, model: str | None, dataset: str | None, as_json: bool) -> None:
    """Print what a remote holds, from one listing."""
    from featcache.store.transfer.catalogue import read_catalogue, search
    from featcache.store.transfer.flight import retried
    from featcache.store.transfer.remotes import open_remote

    with open_remote(parse_address(remote_address)) as remote:
        catalogue = retried(lambda: read_catalogue(remote))
        documents = [entry.to_dict(remote) for entry in search(catalogue.entries, model, dataset)]
        complete = {entry.name for entry in catalogue.entries}
        for name in dict.fromkeys(name for name, _ in catalogue.pushing if name not in complete):
            document = {"dataset": name.dataset, "model": name.model, "key": name.key}
            if not (model or dataset):
                documents.append({**document, "address": remote.where(str(name)), "state": "being pushed"})
        if as_json:
            print_json(documents)
        elif documents:
            print_table(COLUMNS, [_row(document) for document in documents], numeric=COLUMNS[4:])
            click.echo(f"featcache pull {remote.where()}/DATASET/MODEL-KEY")
        else:
            what = f" that match {' and '.join(filter(None, (model, dataset)))}" if model or dataset else ""
            click.echo(f"no caches{what} at {remote.where()}")


def _row(document: JsonObject) -> list[str]:
    names = [document[name] for name in COLUMNS[:4]]
    if "bytes" not in document:
        return [*names, "", "", "", "", ""]
    samples = [str(document["samples"].get(split, "")) for split in ("train", "test")]
    modified = document["modified"]
    age = "" if modified is None else duration(max(0.0, time.time() - modified))
    return [*names, *samples, str(document["layers"]), size(document["bytes"]), age]


def describe_remote(cache_address: str) -> JsonObject:
    """What there is to know of a cache on a remote; fetches its manifest and provenance, and no data."""
    from featcache.store.transfer.catalogue import find_cache, not_found
    from featcache.store.transfer.manifests import fetch_manifest, fetch_sealed
    from featcache.store.writing.writer import PROVENANCE_FILE

    remote, name = find_cache(parse_address(cache_address))
    with remote:
        found = fetch_manifest(remote, name)
        if found is None:
            raise not_found(remote, name)
        manifest = found.manifest
        return {
            "path": remote.where(str(name)),
            "key": name.key,
            "complete": True,
            "state": "complete, on a remote",
            "digest": found.digest,
            "blocks": len(manifest.blocks),
            "missing_blocks": [],
            "bytes": manifest.inventory.num_bytes,
            "spec": manifest.spec.to_dict(),
            "inventory": manifest.inventory.to_dict(),
            "targets": asdict(manifest.inventory.targets),
            "class_counts": {},  # labels and what was skipped are data
            "skipped": None,
            "shared_images": [],
            "provenance": fetch_sealed(remote, f"{name}/{PROVENANCE_FILE}") or {},
        }


def remove_remote(cache_address: str, yes: bool, as_json: bool) -> None:
    """Remove a cache from a remote, after asking."""
    from featcache.store.transfer.removal import find_removable

    found = find_removable(parse_address(cache_address))
    with found.remote:
        if not yes and not _confirmed(found.where, len(found.files), found.num_bytes):
            click.echo("nothing was removed", err=True)
            return
        found.remove()
    if as_json:
        print_json({"address": found.where, "key": found.name.key, "bytes": found.num_bytes})
    else:
        click.echo(f"removed {found.where} ({size(found.num_bytes)})")


def _confirmed(where: str, num_files: int, num_bytes: int) -> bool:
    if not sys.stdin.isatty():
        raise RequestError(f"{where} was not removed: there is no terminal to ask on; add --yes to remove it")
    click.echo(f"{where}\n{num_files} files, {size(num_bytes)}, for everybody who uses this remote", err=True)
    return click.confirm("remove it?", err=True)
