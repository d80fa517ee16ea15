"""``featcache ls``, ``info`` and ``rm`` of what lies on a remote."""

import shlex
import sys
from pathlib import Path

import click

from featcache.cli.listing import COLUMNS, NUMERIC, none_found, table_row
from featcache.extraction.models.names import model_names
from featcache.store.address import Address, parse_address
from featcache.store.catalogue import scan
from featcache.store.corrections import warnings_of
from featcache.store.errors import RequestError
from featcache.store.files import JsonObject
from featcache.terminal.console import echo, format_size, print_json, print_table


def list_remote(remote_address: str, model: str | None, dataset: str | None, as_json: bool) -> None:
    """Print what a remote holds, from one listing."""
    from featcache.store.network.concurrency import retry
    from featcache.store.transfer.catalogue import read_catalogue, search
    from featcache.store.transfer.remotes import open_remote

    with open_remote(parse_address(remote_address)) as remote:
        catalogue = retry(lambda: read_catalogue(remote))
        entries = search(catalogue.entries, model, dataset, model_names(model) if model else ())
        documents = [entry.to_dict(remote) for entry in entries]
        complete = {entry.name for entry in catalogue.entries}
        for name in dict.fromkeys(name for name, _ in catalogue.pushing if name not in complete):
            document = {"dataset": name.dataset, "model": name.model, "key": name.key}
            if not (model or dataset):
                documents.append({**document, "address": remote.where(str(name)), "state": "being pushed"})
        if as_json:
            print_json(documents)
        elif documents:
            print_table(COLUMNS, [table_row(document) for document in documents], numeric=NUMERIC)
            echo(f"featcache pull {remote.where()}/DATASET/MODEL-KEY")
        else:
            echo(f"{none_found(model, dataset)} at {remote.where()}{_root_hint(remote.address)}")


def _root_hint(address: Address) -> str:
    """Return a hint for a folder with caches that nobody pushed, which is a root and no remote."""
    if address.scheme != "file" or next(iter(scan([Path(address.path)])), None) is None:
        return ""
    return f" that were pushed; `{shlex.join(['featcache', 'ls', '--root', address.path])}` lists those that are in it as a root"


def describe_remote(cache_address: str) -> JsonObject:
    """Return the description of a cache on a remote; fetch its manifest and provenance, and no data."""
    from featcache.store.provenance import PROVENANCE_FILE
    from featcache.store.transfer.catalogue import find_cache, not_found
    from featcache.store.transfer.manifests import fetch_manifest, fetch_sealed

    remote, name = find_cache(parse_address(cache_address))
    with remote:
        remote_manifest = fetch_manifest(remote, name)
        if remote_manifest is None:
            raise not_found(remote, name)
        manifest = remote_manifest.manifest
        provenance = fetch_sealed(remote, f"{name}/{PROVENANCE_FILE}") or {}
        return {
            "path": remote.where(str(name)),
            "key": name.key,
            "complete": True,
            "state": "complete, on a remote",
            "digest": remote_manifest.digest,
            "blocks": len(manifest.blocks),
            "missing_blocks": [],
            "bytes": manifest.inventory.num_bytes,
            "spec": manifest.spec_document(),
            "inventory": manifest.inventory.to_dict(),
            "targets": manifest.inventory.targets.describe(),
            "class_counts": {},  # labels and what was skipped are data
            "skipped": None,
            "shared_images": [],
            "warnings": warnings_of(manifest.spec, manifest.inventory.targets, provenance),
            "provenance": provenance,
        }


def remove_remote(cache_address: str, yes: bool, as_json: bool) -> None:
    """Remove a cache from a remote, after asking."""
    from featcache.store.transfer.removal import find_removable

    removable = find_removable(parse_address(cache_address))
    with removable.remote:
        content = f"{len(removable.files)} files, {format_size(removable.num_bytes)}, for everybody who uses this remote"
        if not yes and not confirmed(removable.where, content):
            echo("nothing was removed", err=True)
            return
        removable.remove()
    if as_json:
        print_json({"address": removable.where, "key": removable.name.key, "bytes": removable.num_bytes})
    else:
        echo(f"removed {removable.where} ({format_size(removable.num_bytes)})")


def confirmed(where: str, content: str) -> bool:
    """Show what is to be removed, and ask.

    Raises:
        RequestError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise RequestError(f"{where} was not removed: there is no terminal to ask on; add --yes to remove it")
    echo(where, err=True)
    echo(content, err=True)
    return click.confirm("remove it?", err=True)
