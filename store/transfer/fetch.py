"""Fetch a file from a web address: complete and of a single version, or not at all.

A partial file has a name with a random token, and a note beside it that records its version. Its owner holds a lock on it
while the process lives. Another process resumes a partial file without an owner, if the server still has that version. So
neither two processes nor two containers with equal process ids mix their parts.
"""

import base64
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import Self

from featcache.store.errors import CacheError, RemoteError
from featcache.store.files import (
    PARTIAL_SUFFIX,
    is_open_file,
    partial_path,
    read_json,
    sync_directory,
    try_lock,
    with_filename,
    write_all,
    write_atomic,
)
from featcache.store.network.concurrency import GIVE_UP_S, Attempts, TransientError, check_stop
from featcache.store.network.http_client import HttpClient, Response
from featcache.store.regular_files import REGULAR_FILE_FLAGS
from featcache.store.transfer.remotes.base import Counter

NOTE_SUFFIX = ".version"
MAX_UNDECLARED_BYTES = 2**36
"""Size limit in bytes of a file whose size the server does not declare; an endless one would fill the disk."""
ABANDONED_S = 86_400.0
"""Seconds after which a partial file counts as abandoned, on file systems without locks."""
_POLL_S = 0.2
_PACKED = (".gz", ".tgz")


@dataclass(frozen=True)
class Version:
    """Version, size and digest of a file as its server declares them."""

    tag: str
    """A tag that no other version can have, the ETag or the time of the last change; empty if there is none."""
    size: int | None
    algorithm: str = ""
    """Algorithm of the digest: ``sha256``, ``md5``, or empty if no digest is declared."""
    digest: str = ""
    """The digest in hexadecimal digits."""

    @classmethod
    def of(cls, response: Response) -> Self:
        """Read the version from the headers of an answer with the whole file."""
        algorithm, digest = _declared_digest(response)
        return cls(response.strong_etag, response.length, algorithm, digest)

    @classmethod
    def read(cls, note: Path) -> Self | None:
        """Read the note beside a partial file; None if the note is missing or damaged."""
        with suppress(OSError, CacheError, TypeError):
            version = cls(**read_json(note))
            texts = (version.tag, version.algorithm, version.digest)
            sized = version.size is None or (type(version.size) is int and version.size >= 0)
            if (
                sized
                and all(type(text) is str for text in texts)
                and version.algorithm in ("", "sha256", "md5")
            ):
                return version
        return None


def fetch_file(
    client: HttpClient, url: str, where: str, target: Path, count: Counter, report: Callable[[str], None]
) -> None:
    """Fetch a file to `target` unless it exists; wait if another process is fetching it.

    Args:
        client: sends the requests.
        url: address of the file.
        where: name of the file in messages, without credentials.
        target: path of the file; its folder is created.
        count: called with the number of bytes that arrive.
        report: called with a line for the user, such as that the call waits for another process.

    Raises:
        MissingError: the file does not exist on the server.
        RemoteError: the file cannot be fetched, or differs from its declared digest; a partial file that can be resumed
            is kept.
        OSError: the local disk failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _open_partial(target, where, report) as partial_file:
        if partial_file is None:  # another process has fetched it
            return
        attempts = Attempts()
        while True:
            before = partial_file.size
            try:
                _read_on(client, url, where, partial_file, count, report)
                break
            except TransientError as error:
                if partial_file.size > before:
                    attempts.progress()
                attempts.failed(error)
        partial_file.finish(target, where)


def _read_on(
    client: HttpClient,
    url: str,
    where: str,
    partial_file: "_PartialDownload",
    count: Counter,
    report: Callable[[str], None],
) -> None:
    """Read the missing bytes, or the whole file if they may be of another version."""
    version = partial_file.version
    if version is not None and partial_file.size and partial_file.size == version.size:
        return
    response = _request_rest(client, url, where, partial_file)
    resumed = response is not None and response.status == 206
    if response is None:
        response = client.request("GET", url, where)
    with closing(response):
        if version is None or not resumed:
            _require_whole(response, where, partial_file.name)
            version = Version.of(response)
            partial_file.restart(version)
            if (
                version.size is None
                and "chunked" not in response.headers.get("Transfer-Encoding", "").lower()
            ):
                report(
                    f"note: {where}: the server declares no size, so nothing tells whether all of it arrives"
                )
        _receive(response, where, partial_file, version, count)


def _request_rest(
    client: HttpClient, url: str, where: str, partial_file: "_PartialDownload"
) -> Response | None:
    """Ask for the bytes that a partial file lacks.

    Returns:
        The rest of the same version (206), or the whole file (200); None if the server gives neither, or nothing can be resumed.
    """
    version, have = partial_file.version, partial_file.size
    if version is None or not version.tag or not have or (version.size is not None and have >= version.size):
        return None
    response = client.request("GET", url, where, {"Range": f"bytes={have}-", "If-Range": version.tag})
    same_version = response.strong_etag in ("", version.tag) and not response.encoded
    if response.status == 200 or (
        response.status == 206 and response.content_range == (have, version.size) and same_version
    ):
        return response
    response.close()
    return None


def _require_whole(response: Response, where: str, name: str) -> None:
    """Refuse an answer that is not the file itself.

    Raises:
        RemoteError: the answer is partial or compressed.
    """
    if response.status != 200:
        raise RemoteError(
            f"{where}: the server answers with status {response.status} to a request for the whole file"
        )
    # Some servers declare the compression of the file itself, from its extension; that one must not be undone.
    if response.encoded and not name.endswith(_PACKED):
        raise RemoteError(
            f"{where}: the server packs the file ({response.headers['Content-Encoding'][:20]!r}), which was not asked for"
        )


def _receive(
    response: Response, where: str, partial_file: "_PartialDownload", version: Version, count: Counter
) -> None:
    limit = version.size
    if limit is None:
        limit = min(
            MAX_UNDECLARED_BYTES, partial_file.size + shutil.disk_usage(partial_file.path.parent).free
        )
    with closing(response.pieces(unpack=False)) as pieces:
        for piece in pieces:
            check_stop()
            if partial_file.size + len(piece) > limit:
                partial_file.discard()
                raise RemoteError(
                    f"{where}: more than {limit} bytes arrive, as many as the server declares or as fit here"
                )
            partial_file.write(piece)
            count(len(piece))
    if version.size is not None and partial_file.size != version.size:
        raise TransientError(f"{where}: broke off at {partial_file.size} of {version.size} bytes")


class _PartialDownload:
    """A partial file whose lock this process holds."""

    def __init__(self, path: Path, file: FileIO, name: str) -> None:
        self.path, self.name, self._file = path, name, file
        self._note = path.with_name(path.name.removesuffix(PARTIAL_SUFFIX) + NOTE_SUFFIX)
        self.version = Version.read(self._note)
        self.size = file.seek(0, os.SEEK_END)

    def restart(self, version: Version) -> None:
        """Begin a version from its first byte."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.version = 0, version
        # Before the first byte, so that the note is never older than the file.
        write_atomic(self._note, json.dumps(asdict(version)).encode())

    def write(self, piece: bytes) -> None:
        """Append received bytes."""
        with with_filename(self.path):
            write_all(self._file, piece)
        self.size += len(piece)

    def finish(self, target: Path, where: str) -> None:
        """Give the file its final name if its digest is the one that the server declares.

        Raises:
            RemoteError: the digest differs; the file is removed.
        """
        with with_filename(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        version = self.version
        if version is not None and version.digest:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, version.algorithm).hexdigest()
            if digest != version.digest:
                self.discard()
                raise RemoteError(
                    f"{where}: what arrived does not have the {version.algorithm} that the server declares"
                )
        self.path.replace(target)
        self._note.unlink(missing_ok=True)
        sync_directory(target.parent)

    def discard(self) -> None:
        """Remove the partial file."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; keep the file if it can be resumed."""
        if not (self.size and self.version is not None and self.version.tag):
            self.discard()
        self._file.close()


@contextmanager
def _open_partial(
    target: Path, where: str, report: Callable[[str], None]
) -> Iterator[_PartialDownload | None]:
    """Return the partial file for `target`, resumed or new; None once another process has completed it."""
    partial = _resume_or_create(target, where, report)
    if partial is None:
        yield None
        return
    try:
        yield partial
    finally:
        partial.close()


def _resume_or_create(target: Path, where: str, report: Callable[[str], None]) -> _PartialDownload | None:
    told, sizes, since = False, -1, time.monotonic()
    while not target.is_file():
        resumable, others = _take_over(target)
        if resumable is not None or others is None:
            return resumable or _create_partial(target)
        if others != sizes:
            sizes, since = others, time.monotonic()
        elif time.monotonic() - since > 2 * GIVE_UP_S:
            return _create_partial(target)  # the holder of the lock is asleep, or on a machine that is gone
        if not told:
            report(f"{where} is being fetched by another process; waiting for it")
            told = True
        check_stop()
        time.sleep(_POLL_S)
    return None


def _create_partial(target: Path) -> _PartialDownload:
    path = partial_path(target)
    # Lock it before it gets a name under which others look for files without an owner.
    hidden = path.with_suffix(".new")
    file = hidden.open("x+b", buffering=0)
    try_lock(file.fileno())
    hidden.rename(path)
    return _PartialDownload(path, file, target.name)


def _take_over(target: Path) -> tuple[_PartialDownload | None, int | None]:
    """Take over the longest partial file without an owner, and remove the other ones.

    Returns:
        The file, or None; and the bytes of files that other processes are writing, or None if there are none.
    """
    resumable: list[_PartialDownload] = []
    others: int | None = None
    for name in glob.glob(f"{glob.escape(target.name)}*{PARTIAL_SUFFIX}", root_dir=target.parent):
        path = target.with_name(name)
        with suppress(FileNotFoundError):
            locked, size, partial_file = _try_lock_partial(path, target.name)
            if partial_file is not None:
                resumable.append(partial_file)
            elif locked is False:
                others = (others or 0) + size
    resumable.sort(key=lambda partial_file: partial_file.size)
    for partial_file in resumable[:-1]:
        partial_file.discard()
        partial_file.close()
    return (resumable[-1] if resumable else None), others


def _try_lock_partial(path: Path, name: str) -> tuple[bool | None, int, _PartialDownload | None]:
    """Lock a partial file; return whether that worked (None without locks), its size, and the file if it can be resumed."""
    try:
        descriptor = os.open(path, os.O_RDWR | REGULAR_FILE_FLAGS)
    except FileNotFoundError:
        raise
    except OSError:  # a link, or a file of another user
        return None, 0, None
    file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115  # stays open with the lock on it
    status = os.fstat(descriptor)
    tokened = path.name.removesuffix(PARTIAL_SUFFIX) != name
    locked = try_lock(descriptor) if S_ISREG(status.st_mode) and tokened else None
    if locked and is_open_file(descriptor, path):
        return True, status.st_size, _PartialDownload(path, file, name)
    file.close()
    # Without locks only the age shows an abandoned file. Names without a token are from versions that shared one name.
    if locked is None and S_ISREG(status.st_mode) and time.time() - status.st_mtime > ABANDONED_S:
        path.unlink(missing_ok=True)
    return locked, status.st_size, None


def _declared_digest(response: Response) -> tuple[str, str]:
    """Return algorithm and digest of the whole file from the headers; two empty strings if no known digest is declared."""
    headers = response.headers
    fields = [
        *(part.strip() for name in ("Repr-Digest", "Digest") for part in headers.get(name, "").split(",")),
        *(part.strip() for part in headers.get("x-goog-hash", "").split(",")),
        f"sha-256={headers.get('x-amz-checksum-sha256', '')}",
        f"md5={headers.get('Content-MD5', '')}",
    ]
    for field in fields:
        name, _, value = field.partition("=")
        algorithm = {"sha-256": "sha256", "md5": "md5"}.get(name.strip().lower())
        with suppress(ValueError):
            digest = base64.b64decode(value.strip().strip(":"), validate=True).hex()
            if algorithm and len(digest) == 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size:
                return algorithm, digest
    return "", ""
