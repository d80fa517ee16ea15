"""A shared folder as a remote, such as one that several machines mount. What lies in it may be anybody's."""

import os
import secrets
from collections.abc import Generator, Sequence
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

from featcache.store.errors import FeatcacheError, RemoteError
from featcache.store.files import PARTIAL_SUFFIX, sync_directory, write_atomic
from featcache.store.plain import open_plain, refuse_link
from featcache.store.transfer.flight import check_stop
from featcache.store.transfer.remotes.base import (
    PIECE_BYTES,
    Counter,
    Listed,
    MissingError,
    Remote,
    Upload,
)
from featcache.store.transfer.sending import changed_error


class FolderRemote(Remote):
    """A folder of this machine. No link inside it is followed; the folder itself may be one."""

    def _path(self, path: str) -> Path:
        """Where a file lies, once no folder on the way is a link. A share that is not mounted is not filled underneath."""
        root = full = Path(self.address.path)
        if not root.is_dir():
            raise RemoteError(f"there is no folder {root}; is it spelled right, and mounted?")
        for part in path.split("/")[:-1]:
            full = full / part
            refuse_link(full)
        return root / path

    def stat(self, path: str) -> Listed:
        try:
            status = os.lstat(self._path(path))
        except (FileNotFoundError, NotADirectoryError):
            raise MissingError(f"{self.where(path)}: not there") from None
        except OSError as error:
            raise self._error(path, error) from None
        return _listed(status)

    def read(self, path: str, offset: int = 0) -> Generator[bytes, None, None]:
        try:
            descriptor, _ = open_plain(self._path(path))
        except FileNotFoundError:
            raise MissingError(f"{self.where(path)}: not there") from None
        try:
            os.lseek(descriptor, offset, os.SEEK_SET)
            while piece := os.read(descriptor, PIECE_BYTES):
                yield piece
        except OSError as error:
            raise self._error(path, error) from None
        finally:
            os.close(descriptor)

    def files(self, folder: str) -> dict[str, Listed]:
        top = self._path(f"{folder}/x").parent
        found = {}
        for name, _, files in os.walk(top):
            for file in files:
                path = Path(name, file)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue  # somebody has just renamed it
                if S_ISREG(status.st_mode):
                    found[path.relative_to(top).as_posix()] = _listed(status)
        return found

    def put(self, upload: Upload, count: Counter) -> None:
        target = self._make_folder(upload.path)
        partial = target.with_name(f"{target.name}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}")
        digest, size = sha256(), 0
        descriptor, _ = open_plain(upload.source)
        try:
            with open(descriptor, "rb", buffering=0) as source, partial.open("xb", buffering=0) as file:
                while piece := source.read(PIECE_BYTES):
                    check_stop()
                    digest.update(piece)
                    file.write(piece)
                    size += len(piece)
                    count(len(piece))
                os.fsync(file.fileno())
            if (size, digest.hexdigest()) != (upload.record.bytes, upload.record.sha256):
                raise changed_error(upload)
            partial.replace(target)
            sync_directory(target.parent)
        except OSError as error:
            raise self._error(upload.path, error) from None
        finally:
            partial.unlink(missing_ok=True)

    def put_bytes(self, path: str, data: bytes) -> None:
        try:
            write_atomic(self._make_folder(path), data)
        except OSError as error:
            raise self._error(path, error) from None

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files, and the folders that are empty then."""
        for path in paths:
            full = self._path(path)
            try:
                full.unlink(missing_ok=True)
                self._remove_empty(full.parent)
            except OSError as error:
                raise self._error(path, error) from None

    def _remove_empty(self, folder: Path) -> None:
        root = Path(self.address.path)
        while folder != root and root in folder.parents and folder.is_dir() and not os.listdir(folder):
            folder.rmdir()
            folder = folder.parent

    def _make_folder(self, path: str) -> Path:
        target = self._path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._error(path, error) from None
        return target

    def _error(self, path: str, error: OSError) -> OSError:
        """Of the file system; featcache's own errors are of its kind too, and stay what they are."""
        return (
            error
            if isinstance(error, FeatcacheError)
            else RemoteError(f"{self.where(path)}: {error.strerror or error}")
        )


def _listed(status: os.stat_result) -> Listed:
    return Listed(status.st_size, f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}", status.st_mtime)
