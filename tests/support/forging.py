"""Changing a valid cache on purpose, and sealing it again, so that what is judged is the change and not a digest."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featcache.store.files import canonical_json, read_sealed, sha256_file, sha256_hex, write_sealed
from featcache.store.spec import KEY_DIGITS, KEY_VERSION

Change = Callable[[Path], object]
"""Does something to the cache in a folder; the folder ``outside`` beside it is somebody else's."""

FEATURES = "features.zarr"
DROP = object()
"""Value that removes the field."""


def outside(cache: Path) -> Path:
    """A folder next to a cache that nobody may touch by way of it."""
    return cache.parent / "outside"


def put(document: Any, spot: tuple, value: Any) -> None:
    """Set (or `DROP`) the field at a path of keys and indices."""
    for step in spot[:-1]:
        document = document[step]
    if value is DROP:
        del document[spot[-1]]
    else:
        document[spot[-1]] = value


def forge_manifest(cache: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest; its key and its digest fit it afterwards."""
    document = read_sealed(cache / "manifest.json")
    key = document["key"]
    change(document)
    if isinstance(document.get("spec"), dict) and document.get("key") == key:
        spec = document["spec"] | {"format_version": KEY_VERSION}
        document["key"] = sha256_hex(canonical_json(spec))[:KEY_DIGITS]
    write_sealed(cache / "manifest.json", document)


def manifest(*spot: Any, to: Any) -> Change:
    """Set a field of the manifest."""
    return lambda cache: forge_manifest(cache, lambda document: put(document, spot, to))


def split(*spot: Any, to: Any) -> Change:
    """Set a field of the split ``train`` in the manifest's inventory."""
    return manifest("inventory", "splits", "train", *spot, to=to)


def array(name: str, *spot: Any, to: Any) -> Change:
    """Set a field of an array of the split ``train`` in the manifest's inventory."""
    return split("arrays", name, *spot, to=to)


def renamed(*spot: Any, to: str) -> Change:
    """Give an entry of the manifest another name."""

    def change(document: dict) -> None:
        for step in spot[:-1]:
            document = document[step]
        document[to] = document.pop(spot[-1])

    return lambda cache: forge_manifest(cache, change)


def reseal(cache: Path, *paths: str) -> None:
    """Make the manifest vouch for changed files, given as paths within features.zarr."""

    def change(document: dict) -> None:
        for table in (document["metadata"], *(block["files"] for block in document["blocks"])):
            for path in set(paths) & set(table):
                file = cache / FEATURES / path
                table[path] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}

    forge_manifest(cache, change)


def content(path: str, change: Callable[[bytes], bytes]) -> Change:
    """Change the bytes of a file within features.zarr."""

    def apply(cache: Path) -> None:
        file = cache / FEATURES / path
        file.write_bytes(change(file.read_bytes()))
        reseal(cache, path)

    return apply


def zarr_json(node: str, *spot: Any, to: Any) -> Change:
    """Set a field of the zarr.json of an array or group."""

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        put(document, spot, to)
        return json.dumps(document).encode()

    return content(f"{node}/zarr.json".lstrip("/"), change)


def geometry(name: str, axis: int, to: int, splits: tuple[str, ...] = ("train",)) -> Change:
    """Let manifest and Zarr metadata agree that an array is larger than what its files hold."""

    def change(document: dict) -> None:
        for split in splits:
            shape = document["inventory"]["splits"][split]["arrays"][name]["shape"]
            factor = to // shape[axis]
            shape[axis] = to
            for block in document["blocks"]:
                for path, record in block["files"].items():
                    record["bytes"] *= factor if path.startswith(f"{split}/{name}/") else 1

    def apply(cache: Path) -> None:
        for split in splits:
            zarr_json(f"{split}/{name}", "shape", axis, to=to)(cache)
            chunk_axis = ("chunk_grid", "configuration", "chunk_shape", axis)
            zarr_json(f"{split}/{name}", *chunk_axis, to=to)(cache)
        forge_manifest(cache, change)

    return apply


def both(*changes: Change) -> Change:
    """Several changes, in turn."""
    return lambda cache: [change(cache) for change in changes]


def raw(name: str, data: bytes | Callable[[bytes], bytes]) -> Change:
    """Write a file's bytes and seal nothing."""

    def apply(cache: Path) -> None:
        file = cache / name
        file.write_bytes(data if isinstance(data, bytes) else data(file.read_bytes()))

    return apply


def sparse(name: str, size: int) -> Change:
    """Make a file of any size that takes no room."""
    return lambda cache: os.truncate(cache / name, size)


def sealed(name: str, *spot: Any, to: Any) -> Change:
    """Set a field of a sealed document other than the manifest."""

    def apply(cache: Path) -> None:
        document = read_sealed(cache / name)
        put(document, spot, to)
        write_sealed(cache / name, document)

    return apply


def moved_out(name: str) -> Change:
    """Move a file or folder out of the cache, and leave a link to it."""

    def apply(cache: Path) -> None:
        target = outside(cache) / Path(name).name
        (cache / name).rename(target)
        (cache / name).symlink_to(target)

    return apply


def link(name: str, target: str) -> Change:
    """Put a link in the place of a file."""

    def apply(cache: Path) -> None:
        (cache / name).unlink(missing_ok=True)
        (cache / name).symlink_to(target)

    return apply


def special(name: str, kind: str) -> Change:
    """Put a ``folder``, ``pipe`` or ``socket`` in the place of a file."""

    def apply(cache: Path) -> None:
        path = cache / name
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            here = os.open(path.parent, os.O_RDONLY)  # a socket's name is short
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)

    return apply
