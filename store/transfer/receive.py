"""Receiving one file: what arrives is held to its recorded size and SHA-256 before it gets its name."""

import os
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from featcache.store.errors import CacheError, MissingError
from featcache.store.files import PARTIAL_SUFFIX, with_filename, write_all
from featcache.store.manifest import FileRecord
from featcache.store.network.concurrency import PIECE_BYTES, Attempts, TransientError, check_stop, retry
from featcache.store.regular_files import REGULAR_FILE_FLAGS, irregularity
from featcache.store.transfer.remotes.base import Counter, Remote

T = TypeVar("T")
_PUSH_AGAIN = "whoever pushed the cache can repair it with another `featcache push`"
RECEIVING = f".pull{PARTIAL_SUFFIX}"


class WrongContentError(CacheError):
    """A remote sent something other than the manifest says, twice."""


def receive_file(remote: Remote, path: str, record: FileRecord, target: Path, count: Counter) -> None:
    """Fetch a file; `target` then holds it whole, or is as it was. An interrupted transfer resumes where it stopped.

    Args:
        remote: where it is.
        path: its path there.
        record: its size and digest.
        target: where it goes.
        count: is told the bytes that arrive.

    Raises:
        WrongContentError: it is not what it should be, also when it was fetched again.
        RemoteError: the remote cannot be reached, or not for long enough.
    """
    partial = target.with_name(target.name + RECEIVING)
    if irregularity(partial) not in (None, "missing"):
        partial.unlink()  # a link would lead the bytes out of the folder
    with with_filename(partial), open(_open_partial(partial), "r+b", buffering=0) as file:

        def keep(piece: bytes) -> None:
            write_all(file, piece)

        def restart() -> None:
            file.seek(0)
            file.truncate()

        sink = Sink(keep, restart, count)
        if os.fstat(file.fileno()).st_size > record.bytes:
            restart()
        while piece := file.read(PIECE_BYTES):  # what an interrupted pull left
            check_stop()
            sink.begin(piece)
        try:
            _fetch_with_retry(remote, path, record, sink)
        except MissingError as error:
            raise MissingError(f"{error}, although the manifest names it; {_PUSH_AGAIN}") from error
        os.fsync(file.fileno())
    partial.replace(target)


def _open_partial(partial: Path) -> int:
    # The umask decides who else may write, so that a colleague can resume a killed pull.
    flags, mode = os.O_RDWR | os.O_CREAT | REGULAR_FILE_FLAGS, 0o666
    try:
        return os.open(partial, flags, mode)
    except PermissionError:
        partial.unlink()  # writable for another user only; a team folder allows to replace it
        return os.open(partial, flags, mode)


def receive_bytes(remote: Remote, path: str, record: FileRecord) -> bytes:
    """Fetch a small file into memory; errors as for `receive_file`."""
    pieces: list[bytes] = []
    _fetch_with_retry(remote, path, record, Sink(pieces.append, pieces.clear, lambda _: None))
    return b"".join(pieces)


def receive_document(remote: Remote, path: str, limit: int) -> bytes:
    """Fetch a file of unknown content, of at most `limit` bytes.

    Raises:
        MissingError: it is not there.
        CacheError: it is longer.
        RemoteError: the remote cannot be reached.
    """

    def fetch() -> bytes:
        data = bytearray()
        with closing(remote.read(path, 0, limit)) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > limit:
                    raise CacheError(
                        f"{remote.where(path)}: more than {limit} bytes, not what a cache has there"
                    )
        return bytes(data)

    return retry(fetch)


def retry_once(work: Callable[[], T]) -> T:
    """Do `work`, which fetches a document, once more if what arrives is wrong: it may have been damaged on the way."""
    try:
        return work()
    except CacheError:
        return work()


class Sink:
    """Receiver of the bytes of one file, with their digest."""

    def __init__(
        self, keep: Callable[[bytes], object], restart: Callable[[], object], count: Counter
    ) -> None:
        self._keep, self._restart, self._count = keep, restart, count
        self._digest = sha256()
        self.size = 0

    def begin(self, piece: bytes) -> None:
        """Take up what is there already."""
        self._digest.update(piece)
        self.size += len(piece)
        self._count(len(piece))

    def write(self, piece: bytes) -> None:
        """Keep what has arrived."""
        self._keep(piece)
        self.begin(piece)

    def restart(self) -> None:
        """Forget everything."""
        self._restart()
        self._count(-self.size)
        self._digest, self.size = sha256(), 0

    def mismatch(self, record: FileRecord) -> str | None:
        """Return how the received bytes differ from the record; None if they do not."""
        if self.size != record.bytes:
            return f"{self.size} bytes arrived, must be {record.bytes}"
        return None if self._digest.hexdigest() == record.sha256 else "content does not match its SHA-256"


def _fetch_with_retry(remote: Remote, path: str, record: FileRecord, sink: Sink) -> None:
    for _ in range(2):
        too_long = _fetch(remote, path, record, sink)
        mismatch = "more bytes arrive than the manifest says" if too_long else sink.mismatch(record)
        if mismatch is None:
            return
        sink.restart()
    raise WrongContentError(f"{remote.where(path)}: {mismatch}, twice; nothing of it was kept")


def _fetch(remote: Remote, path: str, record: FileRecord, sink: Sink) -> bool:
    """Read until the recorded size is there, from where it was; True if the remote would send more."""
    if 0 < sink.size == record.bytes:
        return False  # killed between the last byte and the renaming; servers refuse a range behind the end (416)
    attempts = Attempts()
    while True:
        before = sink.size
        try:
            too_long, error = _read_on(remote, path, record.bytes, sink), None
        except TransientError as caught:
            too_long, error = False, caught
        if too_long or sink.size == record.bytes:
            return too_long
        if sink.size > before:
            attempts.progress()
        if not attempts.failed(error):
            return False  # it ends too early, every time


def _read_on(remote: Remote, path: str, size: int, sink: Sink) -> bool:
    with closing(remote.read(path, sink.size, size)) as pieces:
        for piece in pieces:
            check_stop()
            if sink.size + len(piece) > size:
                return True
            sink.write(piece)
    return False
