"""Durable file operations and the one place where featcache's JSON documents are read and written.

A *sealed* document carries a SHA-256 of its own content, so that damage to metadata is noticed like damage to data.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featcache.store.errors import CacheError

JsonObject = dict[str, Any]

# A manifest of 25 layers x 64 blocks x 2 splits is half a megabyte; a larger document is not one of ours.
MAX_DOCUMENT_BYTES = 256 * 2**20
PARTIAL_SUFFIX = ".partial"


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds the old bytes or all of the new ones, also after a power loss."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_directory(path.parent)


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return the one byte string that stands for `document`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_hex(data: bytes) -> str:
    """SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the file that `write_sealed` writes."""
    sealed = {**document, "digest": sha256_hex(canonical_json(document))}
    return json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def write_sealed(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document with a ``digest`` of its own content, atomically."""
    write_atomic(path, sealed_bytes(document))


def read_sealed(path: Path) -> JsonObject:
    """Read a document written by `write_sealed`, without its ``digest``.

    Raises:
        FileNotFoundError: there is no such file.
        CacheError: it is not JSON, not an object, too large, or its digest does not match.
    """
    document = read_json(path)
    digest = document.pop("digest", None)
    try:
        content = sha256_hex(canonical_json(document))
    except (ValueError, RecursionError):  # a number out of range or half a character: we never wrote that
        content = None
    if content is None or digest != content:
        raise CacheError(
            f"{path}: field 'digest' does not match the content; the file is damaged or was edited"
        )
    return document


def read_json(path: Path) -> JsonObject:
    """Read a JSON object of bounded size; errors as in `read_sealed`."""
    size = path.stat().st_size
    if size > MAX_DOCUMENT_BYTES:
        raise CacheError(f"{path}: {size} bytes is more than a metadata file may have ({MAX_DOCUMENT_BYTES})")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise CacheError(f"{path}: must hold a JSON object, got {type(document).__name__}")
    return document


def field(document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return ``document[name]`` if it is a `kind`, else raise a `CacheError` that names the field."""
    value = document.get(name)
    # JSON's true is not a count, although Python's bool is an int.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        wanted = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise CacheError(f"{where}: field {name!r} must be {wanted}, got {type(value).__name__}")
    return value
