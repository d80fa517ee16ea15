"""Interface of all remotes. Paths are relative to the remote, with ``/`` between their parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from featcache.store.address import Address
from featcache.store.errors import FeatcacheError, RemoteError
from featcache.store.manifest import FileRecord
from featcache.store.network.concurrency import CONCURRENT_FILES, TransientError, retry, run_concurrently
from featcache.store.network.timeouts import SILENCE_S, run_with_timeout

T = TypeVar("T")
_TRANSIENT = (408, 409, 412, 425, 429)


@dataclass(frozen=True)
class RemoteFile:
    """Metadata of one file on a remote."""

    size: int
    version: str = ""
    """Changes when the file does: an ETag, or a time."""
    modified: float | None = None
    """Seconds since the epoch, where it is known."""
    sha256: str | None = None
    """Digest in hexadecimal digits, where the remote knows it."""


@dataclass(frozen=True)
class Upload:
    """A file on its way to a remote."""

    path: str
    source: Path
    record: FileRecord


Counter = Callable[[int], None]
"""Called with bytes that have moved, from any thread."""


class Remote(ABC):
    """A place for caches. Safe to use from several threads."""

    writable = True
    knows_digests = False
    """Whether `files` tells the SHA-256 of files, so that what is there can be trusted."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._prefix = "/".join(address.parts)

    def where(self, path: str = "") -> str:
        """Name something on this remote in messages, without credentials."""
        return f"{self.address}/{path}".rstrip("/")

    def _name(self, path: str) -> str:
        """Return the name of a file in the whole bucket or repository, of which this remote may be a folder."""
        return f"{self._prefix}/{path}" if self._prefix else path

    def _translate_error(self, path: str, error: Exception) -> FeatcacheError | None:
        """Translate an error of the client for `path`, by the table of this remote type.

        Return None for an error that is not in the table: it is a bug here or in the client, so it neither counts as a
        network failure nor leads to a retry.
        """
        return None

    @contextmanager
    def _client_errors(self, path: str) -> Iterator[None]:
        """Turn errors of the client into errors of this package, with the original as the cause."""
        try:
            yield
        except FeatcacheError:
            raise
        except Exception as error:
            meaning = self._translate_error(path, error)
            if meaning is None:
                raise
            raise meaning from error

    def _request(self, path: str, work: Callable[[], T]) -> T:
        """Make a small request within a time limit; clients bound neither the sum of their waits nor their retries."""
        with self._client_errors(path):
            return run_with_timeout(work, 2 * SILENCE_S, self.where(path))

    @abstractmethod
    def stat(self, path: str) -> RemoteFile:
        """Ask about one file.

        Raises:
            MissingError: it is not there.
            RemoteError: the remote cannot be reached or refuses.
        """

    def holds(self, remote_file: RemoteFile, upload: Upload) -> bool:
        """Return whether a file that an interrupted push of the same content left is what it should be."""
        return remote_file.size == upload.record.bytes

    @abstractmethod
    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        """Read a file from `offset` on, in pieces; closing the iterator ends the transfer.

        Args:
            path: path of the file.
            offset: first byte to read.
            limit: largest size of the file. It bounds a client that fetches a file before it returns anything; a remote
                that streams may send more, so the reader must count.

        Raises:
            MissingError: the file does not exist.
            RemoteError: the remote cannot be reached or refuses, or the file has more than `limit` bytes.
        """

    @abstractmethod
    def files(self, folder: str) -> dict[str, RemoteFile]:
        """Return the files below a folder by their path within it; empty where there is none.

        Raises:
            RemoteError: the remote cannot be reached or refuses, or cannot list.
        """

    @abstractmethod
    def put(self, upload: Upload, count: Counter) -> None:
        """Store a file, whole or not at all.

        Raises:
            RemoteError: the remote cannot be reached or refuses.
            CacheError: the local file is not what its record says.
        """

    @abstractmethod
    def put_bytes(self, path: str, data: bytes) -> None:
        """Store a small file, whole or not at all; errors as for `put`."""

    @abstractmethod
    def delete(self, paths: Sequence[str]) -> None:
        """Delete files; those that are not there do not matter. Errors as for `files`."""

    def put_all(self, uploads: Sequence[Upload], count: Counter) -> None:
        """Store many files, several at a time; errors as for `put`."""
        run_concurrently(
            [partial(retry, partial(self.put, upload, count)) for upload in uploads], CONCURRENT_FILES
        )

    def publish(self, documents: Mapping[str, bytes], message: str) -> None:
        """Store small files in this very order, so that the last one makes the others count; errors as for `put`.

        Args:
            documents: contents by path.
            message: what happens, for remotes that keep a history.
        """
        for path, data in documents.items():
            self.put_bytes(path, data)

    def close(self) -> None:  # noqa: B027  # most have nothing to give back
        """Give connections back."""

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def status_error(status: int, message: str) -> RemoteError:
    """Return the error for an HTTP status of a store: a `TransientError` if a retry may help."""
    return (TransientError if status >= 500 or status in _TRANSIENT else RemoteError)(message)
