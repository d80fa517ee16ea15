"""A folder on another machine as a remote, over SFTP, through asyncssh.

Hosts, users, keys and jumps come from ``~/.ssh`` and the agent; an unknown host key ends the connection.
"""

import asyncio
import getpass
import secrets
from collections.abc import Coroutine, Generator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from posixpath import dirname, join
from threading import Lock, Thread
from typing import Any, TypeVar

from featcache.store.address import Address, redacted
from featcache.store.errors import FeatcacheError, MissingError, RemoteError, RequestError
from featcache.store.files import PARTIAL_SUFFIX
from featcache.store.network.concurrency import TransientError, check_stop
from featcache.store.network.timeouts import CONNECT_S, LISTING_S, SILENCE_S, ListingGuard
from featcache.store.regular_files import open_regular
from featcache.store.transfer.remotes.base import Counter, Remote, RemoteFile, Upload
from featcache.store.transfer.remotes.sending import changed_error

T = TypeVar("T")
_REGULAR, _FOLDER = 1, 2
PIECE_BYTES = 256 * 2**10
"""Bytes that must move in `CALL_S`, with eight files side by side over one connection."""
CALL_S = 2 * SILENCE_S
"""Seconds for one step on a live connection; `KEEPALIVE_S` detects dead ones."""
KEEPALIVE_S = SILENCE_S / 3
MAX_DEPTH = 32
"""Depth of nested folders in a listing; a cache has three levels."""


class SshRemote(Remote):
    """A folder on a host. One connection, whose work happens on a thread of its own."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        try:
            import asyncssh
        except ImportError:
            raise RequestError("remotes over SSH need asyncssh: pip install 'featcache[ssh]'") from None
        _require_user(address)
        self._asyncssh = asyncssh
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="featcache-ssh", daemon=True)
        self._thread.start()
        self._connecting = Lock()
        self._connection: Any = None
        self._sftp: Any = None

    def stat(self, path: str) -> RemoteFile:
        return _remote_file(self._call(path, self._client().lstat(self._full(path))))

    def read(self, path: str, offset: int, limit: int) -> Generator[bytes, None, None]:
        file = self._call(path, self._client().open(self._full(path), "rb"))
        try:
            while piece := self._call(path, file.read(PIECE_BYTES, offset)):
                offset += len(piece)
                yield piece
        finally:
            self._call(path, file.close())

    def files(self, folder: str) -> dict[str, RemoteFile]:
        sftp, top, guard = self._client(), self._full(folder), ListingGuard(self.where(folder))

        async def collect() -> dict[str, RemoteFile]:
            remote_files, pending = {}, [""]
            while pending:
                below = pending.pop()
                try:
                    async for entry in sftp.scandir(join(top, below)):
                        guard.count()
                        name = _text(entry.filename)
                        if name in (".", ".."):
                            continue
                        if entry.attrs.type == _FOLDER and below.count("/") < MAX_DEPTH:
                            pending.append(join(below, name))
                        elif entry.attrs.type == _REGULAR:
                            remote_files[join(below, name)] = _remote_file(entry.attrs)
                except (self._asyncssh.SFTPNoSuchFile, self._asyncssh.SFTPNoSuchPath):
                    continue
                guard.count(0)
            return remote_files

        return self._call(folder, collect(), LISTING_S)

    def put(self, upload: Upload, count: Counter) -> None:
        digest, size = sha256(), 0
        descriptor, _ = open_regular(upload.source)
        with open(descriptor, "rb", buffering=0) as source, _Partial(self, upload.path) as partial:
            while piece := source.read(PIECE_BYTES):
                check_stop()
                digest.update(piece)
                partial.write(piece, size)
                size += len(piece)
                count(len(piece))
            if (size, digest.hexdigest()) != (upload.record.bytes, upload.record.sha256):
                raise changed_error(upload)
            partial.keep()

    def put_bytes(self, path: str, data: bytes) -> None:
        with _Partial(self, path) as partial:
            partial.write(data, 0)
            partial.keep()

    def delete(self, paths: Sequence[str]) -> None:
        """Delete files, and the folders that are empty then."""
        sftp = self._client()

        async def remove(path: str) -> None:
            try:
                await sftp.remove(path)
            except self._asyncssh.SFTPNoSuchFile:
                return
            while (path := dirname(path)).startswith(f"{self.address.path}/"):
                try:
                    await sftp.rmdir(path)
                except self._asyncssh.SFTPError:
                    return

        for path in paths:
            self._call(path, remove(self._full(path)))

    def close(self) -> None:
        if self._loop.is_closed():
            return
        if self._connection is not None:
            with suppress(RemoteError):
                self._call("", self._disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _full(self, path: str) -> str:
        return f"{self.address.path}/{path}"

    def _client(self) -> Any:
        """Return the SFTP client, connected again if the connection was lost."""
        with self._connecting:
            if self._connection is None or self._connection.is_closed():
                self._call("", self._connect())
            return self._sftp

    async def _connect(self) -> None:
        user, _, password = self.address.login.partition(":")
        if password:
            raise RequestError(f"{self.address}: no passwords in addresses; use a key or the agent")
        host, _, port = self.address.host_or_bucket.partition(":")
        options: dict[str, Any] = {"username": user} if user else {}
        if port:
            options["port"] = int(port)
        self._connection = await self._asyncssh.connect(
            host,
            connect_timeout=CONNECT_S,
            login_timeout=SILENCE_S,
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=2,
            password_auth=False,
            kbdint_auth=False,
            **options,
        )
        self._sftp = await self._connection.start_sftp_client(path_errors="surrogateescape")

    async def _disconnect(self) -> None:
        self._sftp.exit()
        self._connection.close()
        await self._connection.wait_closed()
        await asyncio.sleep(0)  # the transport closes its socket in the next round
        self._connection = None

    def _call(self, path: str, work: Coroutine[Any, Any, T], seconds: float = CALL_S) -> T:
        """Do something on the connection's thread and wait for it."""

        async def bounded() -> T:
            started = self._loop.time()
            try:
                return await asyncio.wait_for(work, seconds)
            except TimeoutError:  # includes the client's own error while connecting
                waited = self._loop.time() - started
                raise TransientError(f"{self.where(path)}: no answer within {waited:.0f} s") from None

        future = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            with self._client_errors(path):
                return future.result()
        finally:
            future.cancel()

    def _translate_error(self, path: str, error: Exception) -> FeatcacheError | None:
        ssh, where = self._asyncssh, self.where(path)
        missing = (ssh.SFTPNoSuchFile, ssh.SFTPNoSuchPath, ssh.SFTPNotADirectory)
        refused = (ssh.SFTPPermissionDenied, ssh.SFTPWriteProtect, ssh.SFTPCannotDelete)
        passing = (ssh.SFTPConnectionLost, ssh.SFTPNoConnection, ssh.SFTPLockConflict)
        permanent = (ssh.ProtocolNotSupported, ssh.IllegalUserName, ssh.CompressionError)
        if isinstance(error, missing):
            return MissingError(f"{where}: not there")
        if isinstance(error, ssh.HostKeyNotVerifiable | ssh.KeyExchangeFailed):
            return RemoteError(
                f"{self.address}: the key of this host is not known or has changed; connect once with `ssh` and check it"
            )
        if isinstance(error, ssh.PermissionDenied):
            return RemoteError(
                f"{self.address}: refused; keys come from ~/.ssh and the agent, try `ssh` first"
            )
        if isinstance(error, refused):
            return RemoteError(f"{where}: permission denied; ask whoever owns the folder for the right to it")
        text = redacted(str(error))[:200] or type(error).__name__
        if isinstance(error, (*permanent, ssh.KeyImportError, ssh.ConfigParseError)):
            return RemoteError(f"{self.address}: {text}; try `ssh` first")
        # Connections that end, or cannot be made: unknown host, nobody listens, no answer.
        if isinstance(error, (*passing, ssh.DisconnectError, ssh.ChannelOpenError, OSError)):
            return TransientError(f"{where}: {text}")
        if isinstance(error, ssh.SFTPError):
            return RemoteError(f"{where}: {text}")
        return None


def _require_user(address: Address) -> None:
    """Refuse to connect if the user has no home folder in which the client could look for keys.

    Raises:
        RequestError: the user has no name or no home folder, as in many containers.
    """
    try:
        getpass.getuser()
        Path.home()
    except (KeyError, OSError, RuntimeError):
        raise RequestError(
            f"{address}: this user has no name or no home folder, where SSH has its keys; set LOGNAME and HOME"
        ) from None


class _Partial:
    """A file under a temporary name, given its own when it is whole, removed otherwise."""

    def __init__(self, remote: SshRemote, path: str) -> None:
        self._remote, self._path = remote, path
        self._sftp = remote._client()
        self._target = remote._full(path)
        self._name = f"{self._target}.{secrets.token_hex(6)}{PARTIAL_SUFFIX}"
        self._file: Any = None

    def __enter__(self) -> "_Partial":
        self._call(self._sftp.makedirs(dirname(self._target), exist_ok=True))
        self._file = self._call(self._sftp.open(self._name, "xb"))
        return self

    def write(self, data: bytes, offset: int) -> None:
        self._call(self._file.write(data, offset))

    def keep(self) -> None:
        """Give the file its own name."""
        self._call(self._finish())

    async def _finish(self) -> None:
        with suppress(self._remote._asyncssh.SFTPOpUnsupported):
            await self._file.fsync()
        await self._file.close()
        self._file = None
        await self._sftp.posix_rename(self._name, self._target)

    def __exit__(self, *error: object) -> None:
        if self._file is None:
            return
        with suppress(RemoteError):  # the connection may be gone; what stays counts for nothing
            self._call(self._file.close())
            self._call(self._sftp.remove(self._name))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return self._remote._call(self._path, work)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="surrogateescape")


def _remote_file(attributes: Any) -> RemoteFile:
    if attributes.type != _REGULAR:
        raise MissingError("not a regular file")
    size, modified = attributes.size or 0, float(attributes.mtime or 0)
    return RemoteFile(size, f"{modified}-{size}", modified)
