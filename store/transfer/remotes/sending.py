"""Reading a local file on its way to a remote: what is sent is held to its recorded digest."""

import os
from hashlib import sha256
from io import RawIOBase

from featcache.store.errors import CacheError
from featcache.store.network.concurrency import check_stop
from featcache.store.regular_files import open_regular, sha256_regular
from featcache.store.transfer.remotes.base import Counter, Upload


def changed_error(upload: Upload) -> CacheError:
    """Return the error for a local file that differs from the manifest; the push has not reached the manifest yet."""
    return CacheError(
        f"{upload.source}: content does not match its SHA-256, so it is not pushed; "
        "see what is wrong with `featcache verify`"
    )


def read_whole(upload: Upload) -> bytes:
    """Read a file into memory.

    Raises:
        CacheError: it is not what its record says.
    """
    check_stop()
    descriptor, size = open_regular(upload.source)
    with open(descriptor, "rb", buffering=0) as file:
        data = file.read(upload.record.bytes + 1) if size == upload.record.bytes else b""
    if data is None or len(data) != upload.record.bytes or sha256(data).hexdigest() != upload.record.sha256:
        raise changed_error(upload)
    return data


def require_recorded(upload: Upload) -> None:
    """Refuse a file that is not what its record says, before a client of its own sends it.

    Raises:
        CacheError: it is not.
    """
    if upload.record.mismatch(upload.source) or sha256_regular(upload.source) != upload.record.sha256:
        raise changed_error(upload)


class HashingFile(RawIOBase):
    """A local file that is read once, from the start, and tells then whether it was what its record says."""

    def __init__(self, upload: Upload, count: Counter) -> None:
        self._descriptor, self._size = open_regular(upload.source)
        self._upload, self._count = upload, count
        self._digest, self._sent, self._position = sha256(), 0, 0

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: clients ask for the size by seeking to the end."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to a place that is going to be read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Read the next bytes."""
        check_stop()
        num_bytes = self._size - self._position if size < 0 else size
        data = os.pread(self._descriptor, num_bytes, self._position)
        if self._position == self._sent:  # what is read a second time is not hashed again
            self._digest.update(data)
            self._sent += len(data)
            self._count(len(data))
        self._position += len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            os.close(self._descriptor)
        super().close()

    def require_sent(self) -> None:
        """Refuse what was not the recorded content.

        Raises:
            CacheError: it was not.
        """
        record = self._upload.record
        if (self._sent, self._digest.hexdigest()) != (record.bytes, record.sha256):
            raise changed_error(self._upload)
