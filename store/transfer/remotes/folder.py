"""A shared folder as a remote, such as one that several machines mount. What lies in it may be anybody's."""

import errno
import os
from collections.abc import Generator, Sequence
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

from featcache.store.errors import FeatcacheError, MissingError, RemoteError
from featcache.store.files import partial_path, sync_directory, write_all, write_atomic
from featcache.store.network.concurrency import PIECE_BYTES, check_stop
from featcache.store.network.timeouts import ListingGuard
from featcache.store.regular_files import open_regular, refuse_link
from featcache.store.transfer.remotes.base import Counter, Remote, RemoteFile, Upload
from featcache.store.transfer.remotes.sending import changed_error


class FolderRemote(Remote):
    """A folder of this machine. No link inside it is followed; the folder itself may be one."""

    def _path(self, path: str) -> Path:
        """Return the path of a file, after checking that no folder on the way is a link. An unmounted share is not filled underneath."""
        root = full = Path(self.address.path)
        if not root.is_dir():
            raise RemoteError(f"there is no folder {root}; is it spelled right, and mounted?")
        for part in path.split("/")[:-1]:
            full = full / part
            refuse_link(full)
        return root / path

    def stat(self, path: str) -> RemoteFile:
        with self._client_errors(path):
            return _remote_file(os.lstat(self._path(path)))

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        with self._client_errors(path):
            descriptor, _ = open_regular(self._path(path))
            try:
                os.lseek(descriptor, offset, os.SEEK_SET)
                while piece := os.read(descriptor, PIECE_BYTES):
                    yield piece
            finally:
                os.close(descriptor)

    def files(self, folder: str) -> dict[str, RemoteFile]:
        top, guard = self._path(f"{folder}/x").parent, ListingGuard(self.where(folder))
        remote_files = {}

        def unreadable(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # os.walk would skip the folder, as if it were empty
                raise error

        with self._client_errors(folder):
            for name, _, files in os.walk(top, onerror=unreadable):
                guard.count(len(files))
                for file in files:
                    path = Path(name, file)
                    try:
                        status = path.lstat()
                    except FileNotFoundError:
                        continue  # somebody has just renamed it
                    if S_ISREG(status.st_mode):
                        remote_files[path.relative_to(top).as_posix()] = _remote_file(status)
        return remote_files

    def put(self, upload: Upload, count: Counter) -> None:
        target = self._make_folder(upload.path)
        partial = partial_path(target)
        digest, size = sha256(), 0
        descriptor, _ = open_regular(upload.source)
        try:
            with (
                self._client_errors(upload.path),
                open(descriptor, "rb", buffering=0) as source,
                partial.open("xb", buffering=0) as file,
            ):
                while piece := source.read(PIECE_BYTES):
                    check_stop()
                    digest.update(piece)
                    write_all(file, piece)
                    size += len(piece)
                    count(len(piece))
                os.fsync(file.fileno())
            if (size, digest.hexdigest()) != (upload.record.bytes, upload.record.sha256):
                raise changed_error(upload)
            with self._client_errors(upload.path):
                partial.replace(target)
                sync_directory(target.parent)
        finally:
            partial.unlink(missing_ok=True)

    def put_bytes(self, path: str, data: bytes) -> None:
        with self._client_errors(path):
            write_atomic(self._make_folder(path), data)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files, and the folders that are empty then."""
        for path in paths:
            full = self._path(path)
            with self._client_errors(path):
                full.unlink(missing_ok=True)
                self._remove_empty(full.parent)

    def _remove_empty(self, folder: Path) -> None:
        root = Path(self.address.path)
        while folder != root and root in folder.parents and folder.is_dir() and not os.listdir(folder):
            folder.rmdir()
            folder = folder.parent

    def _make_folder(self, path: str) -> Path:
        target = self._path(path)
        with self._client_errors(path):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _translate_error(self, path: str, error: Exception) -> FeatcacheError | None:
        """Translate an error of the file system; network file systems raise network errors as well."""
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return MissingError(f"{self.where(path)}: not there")
        if isinstance(error, OSError):
            return RemoteError(
                f"{self.where(path)}: {error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"
            )
        return None


_REMEDIES = {
    errno.EACCES: "; ask its owner for the right to it",
    errno.EPERM: "; ask its owner for the right to it",
    errno.EIO: "; the share or its disk failed, run the same command again when it works",
    errno.ESTALE: "; the share went away, run the same command again when it is mounted",
    errno.ENOSPC: "; make room there, and run the same command again",
    errno.EDQUOT: "; make room there, and run the same command again",
}


def _remote_file(status: os.stat_result) -> RemoteFile:
    return RemoteFile(
        status.st_size, f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}", status.st_mtime
    )
