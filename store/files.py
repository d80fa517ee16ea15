"""Durable file operations and the one place where featcache's JSON documents are read and written.

A *sealed* document carries a SHA-256 of its own content, so that damage to metadata is noticed like damage to data.
A cache may come from anywhere: what is read here is a regular file, never a link, and costs bounded memory and time.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from featcache.store.errors import CacheError, FeatcacheError
from featcache.store.regular_files import irregularity, read_regular

JsonObject = dict[str, Any]

# The manifest of ImageNet in 25 layers has 1.5 MB and 30,000 values: 50 million such rows fit.
MAX_DOCUMENT_BYTES = 64 * 2**20
# A few bytes of a document can take a hundred in memory: the worst takes half a gigabyte and some seconds.
MAX_DOCUMENT_VALUES = 2**21
# A manifest has 6 levels, a zarr.json 8. What is nested deeper can be parsed, yet not written again.
MAX_DOCUMENT_DEPTH = 32
PARTIAL_SUFFIX = ".partial"
# Raised by fsync() of a folder on SMB shares and on file systems over object stores.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


# The temporary name of a writer has a random token; that of a transfer needs none, since a claim keeps others out.
_TEMPORARY = re.compile(rf"(?P<name>.+?)(\.[0-9a-f]{{12}}|\.pull)?{re.escape(PARTIAL_SUFFIX)}")


def temporary_for(name: str) -> str | None:
    """Return the name of the file that a temporary file of ours will become; None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else None


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Name `path` in an error of the file system that names nothing, as those of operations on an open file do.

    Nor does the file help that stands for `path` while it is written.
    """
    try:
        yield
    except FeatcacheError:
        raise  # some of these are OSErrors too (`RemoteError`), and their messages are complete
    except OSError as error:
        if error.filename is not None and not str(error.filename).endswith(PARTIAL_SUFFIX):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def partial_path(path: Path) -> Path:
    """Return a temporary name for `path` with a random token.

    Containers that share a folder may have equal process ids, and `path.partial` may be somebody's own file.
    """
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give the temporary name to write to; leaving without an error makes it `path`, else it is removed.

    Args:
        path: the final name.
        durable: make the file survive a power loss; not needed for what can be made again.
    """
    partial = partial_path(path)
    try:
        yield partial
        if durable:
            sync_file(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.absolute().parent)


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power loss."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power loss, where the file system can sync a folder."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with with_filename(directory):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds the old bytes or all of the new ones, also after a power loss.

    Several processes may write the same file at once; the last one wins.

    Raises:
        OSError: the disk is full, broken or gone; names the file.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with with_filename(path):
        if irregularity(partial) not in (None, "missing"):
            partial.unlink(
                missing_ok=True
            )  # a link would lead the bytes out of the folder, a pipe is waited for
        # What a killed process left under the plain name is written over, so nobody has to sweep it.
        if not _write_partial(partial, path, data):
            # Another process is writing this file, or left it writable only for its own user.
            partial = partial_path(path)
            try:
                with partial.open("xb") as file:
                    _replace(partial, path, file, data)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    sync_directory(path.parent)


def _write_partial(partial: Path, path: Path, data: bytes) -> bool:
    """Write through `partial`; return False if another process is using `partial`, or if it may not be written."""
    try:
        file = partial.open("ab")
    except PermissionError:
        return False
    with file:
        locked = try_lock(file.fileno())
        if locked and is_open_file(file.fileno(), partial):
            file.truncate(0)
            _replace(partial, path, file, data)  # before closing the file releases the lock
            return True
    if locked is None:
        partial.unlink(missing_ok=True)
    return False


def _replace(partial: Path, path: Path, file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
    partial.replace(path)


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, since one write to a full disk may store a part of it without an error."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file for this process; False if another one holds it, None on a file system without locks."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_folder_entry(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry of a folder is a folder or leads to one; False for broken, circular and unreadable links."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_open_file(descriptor: int, path: Path) -> bool:
    """Return whether `path` still is the open file: until it was locked, others could rename or replace it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return the one byte string that stands for `document`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_hex(data: bytes) -> str:
    """Return SHA-256 of `data` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return SHA-256 of a file's bytes, read in pieces."""
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
    return unseal(read_json(path), str(path))


def unseal(document: JsonObject, where: str) -> JsonObject:
    """Take the ``digest`` out of a sealed document.

    Raises:
        CacheError: it does not match the content; `where` names the file.
    """
    digest = document.pop("digest", None)
    try:
        content = sha256_hex(canonical_json(document))
    except ValueError:  # half a character: we never wrote that
        content = None
    if content is None or digest != content:
        raise CacheError(
            f"{where}: field 'digest' does not match the content; the file is damaged or was edited"
        )
    return document


def read_json(path: Path) -> JsonObject:
    """Read a JSON object of bounded size; errors as in `read_sealed`."""
    return parse_json(read_regular(path, MAX_DOCUMENT_BYTES), str(path))


def parse_json(data: bytes, where: str) -> JsonObject:
    """Parse a JSON object; `where` names the file in errors.

    Raises:
        CacheError: it is not an object in strict JSON and UTF-8, or not one that featcache would write.
    """
    if len(data) > MAX_DOCUMENT_VALUES and sum(map(data.count, (b",", b"[", b"{"))) > MAX_DOCUMENT_VALUES:
        raise CacheError(f"{where}: more than {MAX_DOCUMENT_VALUES} values, not a metadata file")
    try:
        # Decoded here: json would take UTF-16 as well.
        document = json.loads(
            data.decode(), object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite
        )
        if isinstance(document, dict) and _is_deep(document):
            raise RecursionError
    except ValueError as error:
        raise CacheError(f"{where}: not valid JSON ({error})") from None
    except RecursionError:
        raise CacheError(
            f"{where}: nested more than {MAX_DOCUMENT_DEPTH} levels deep, not a metadata file"
        ) from None
    if not isinstance(document, dict):
        raise CacheError(f"{where}: must hold a JSON object, got {type(document).__name__}")
    return document


def _object(pairs: Sequence[tuple[str, Any]]) -> JsonObject:
    # Readers differ in which of two equal keys they take, so one of them would see what another did not check.
    document: JsonObject = dict(pairs)
    if len(document) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"field {name[:64]!r} appears twice")
    return document


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _is_deep(document: JsonObject) -> bool:
    level: list[Any] = [document]
    for _ in range(MAX_DOCUMENT_DEPTH):
        inside = (outer.values() if type(outer) is dict else outer for outer in level)
        level = [value for values in inside for value in values if type(value) is dict or type(value) is list]
        if not level:
            return False
    return True


def finite_or_null(value: Any) -> Any:
    """Return a JSON value with null for every number that is not finite: JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite_or_null(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(inner) for inner in value]
    return value


def field(document: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return ``document[name]`` if it is a `kind`, else raise a `CacheError` that names the field."""
    value = document.get(name)
    if type(value) is kind:  # nearly always, and a manifest has thousands
        return value
    # JSON's true is not a count, although Python's bool is an int.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        expected = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
        raise CacheError(f"{where}: field {name!r} must be {expected}, got {type(value).__name__}")
    return value


def text_list(document: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """Return ``document[name]`` if it is a list of strings, else raise a `CacheError` that names the field."""
    values = field(document, name, list, where)
    if not all(isinstance(value, str) for value in values):
        raise CacheError(f"{where}: field {name!r} must be a list of strings")
    return tuple(values)


def is_identical_json(got: Any, expected: Any) -> bool:
    """Return whether two JSON values are the same, and not only equal in Python: 3.0 and true are other numbers for others."""
    if type(got) is not type(expected):
        return False
    if isinstance(got, dict):
        return got.keys() == expected.keys() and all(
            is_identical_json(got[name], expected[name]) for name in got
        )
    if isinstance(got, list):
        return len(got) == len(expected) and all(map(is_identical_json, got, expected))
    return bool(got == expected)
