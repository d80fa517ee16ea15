"""Claims: how several processes divide the work on one cache, on one machine or over a shared folder.

A claim is a file that its owner touches now and then. It is taken over when its owner is gone: on the same machine at
once, because the kernel drops the owner's file lock; elsewhere when it has not been touched for a while. Claims save
work, they do not guard data: what a block's files hold never depends on them.
"""

import errno
import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Lock, Thread
from weakref import WeakSet

from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.files import is_open_file, try_lock, with_filename
from featcache.store.regular_files import REGULAR_FILE_FLAGS, refuse_link
from featcache.store.writing.claim_files import (
    DAY_S,
    RECORD_BYTES,
    STALE_S,
    SUFFIX,
    live_claims,
    machine,
    may_write,
    open_claim,
    read_owner,
)

_open: "WeakSet[Claims]" = WeakSet()

HEARTBEAT_S = 10.0
SETUP = "setup"
"""The claim that every writer holds while it begins."""
QUIET_S = 2.0
"""Seconds of waiting for another process before a message."""
# Raised by link() on exFAT, SMB shares, gcsfuse, s3fs and the like.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
_LOCK_TRIES = 100


class Claims:
    """The claims that one process holds in one folder. Use `close` when done; a killed process needs nothing.

    Args:
        folder: where the claim files lie; it must exist.
        heartbeat_s: seconds between touches.
        stale_s: seconds without a touch after which a claim of another machine is taken over.

    Raises:
        CacheError: the folder is a link.
    """

    def __init__(self, folder: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        refuse_link(folder)  # of a cache from elsewhere: claims would be written where it leads
        self.token = uuid.uuid4().hex[:12]
        self._folder = folder
        self._stale_s = stale_s
        self._held: dict[str, int] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._guard = Lock()
        self._stop = Event()
        self._heartbeat = Thread(target=self._beat, args=(heartbeat_s,), daemon=True)
        self._heartbeat.start()
        _open.add(self)

    def acquire(self, name: str) -> bool:
        """Claim `name`; False if another live process holds it.

        Raises:
            FileNotFoundError: the folder is gone.
            CacheError: something other than a claim lies in its place and cannot be removed.
        """
        path = self._folder / f"{name}{SUFFIX}"
        descriptor = self._create(path)
        if descriptor is None:
            descriptor = self._take_over(path)
        if descriptor is None:
            return False
        with self._guard:
            self._held[name] = descriptor
        return True

    def wait(
        self,
        name: str,
        until: Callable[[], bool] = lambda: False,
        poll_s: float = 0.05,
        say: Callable[[str], object] | None = None,
    ) -> bool:
        """Claim `name` as soon as it is free; False if `until` held before, also where the folder went with it.

        Args:
            name: the claim.
            until: ends the wait.
            poll_s: seconds between tries.
            say: receives one line if the wait takes longer than `QUIET_S`.

        Raises:
            FileNotFoundError: the folder is gone, and so is the one that it lay in, or `until` does not hold.
        """
        started = time.monotonic()
        while True:
            try:
                if self.acquire(name):
                    return True
            except FileNotFoundError:
                # Whoever ends the work takes the folder away, but not what it lay in: that was moved or unmounted.
                if not until() or not self._folder.parent.exists():
                    raise
            if until():
                return False
            if say is not None and time.monotonic() - started > QUIET_S:
                say(f"waiting for {self.holder(name)} to finish its step on {self._folder.parent}")
                say = None
            time.sleep(poll_s)

    def holder(self, name: str) -> str:
        """Describe the process that holds a claim, and when the claim expires if that process is dead."""
        owner = read_owner(self._folder / f"{name}{SUFFIX}") or {}
        pid = owner.get("pid")
        process = f"process {pid}" if isinstance(pid, int) else "another process"
        if owner.get("machine") == machine():
            return f"{process} on this machine"
        return f"{process} on another machine (taken over {self._stale_s:g} s after its last sign of life)"

    def holds(self, name: str) -> bool:
        """Whether the claim is still this process's own: a process that slept too long may have lost it.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        owner = read_owner(self._folder / f"{name}{SUFFIX}")
        if owner is None and not self._folder.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        return name in self._held and owner is not None and owner.get("token") == self.token

    def release(self, name: str) -> None:
        """Give a claim back."""
        with self._guard:
            descriptor = self._held.pop(name, None)
        if descriptor is None:
            return
        path = self._folder / f"{name}{SUFFIX}"
        try:
            owner = read_owner(path)
            if owner is not None and owner.get("token") == self.token:
                path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Give all claims back and stop the heartbeat."""
        self._stop.set()
        self._heartbeat.join()
        for name in list(self._held):
            # A claim that cannot be removed lies there unlocked, which is as good; the disk's error was told before.
            with suppress(OSError):
                self.release(name)

    def forget(self) -> None:
        """Close the descriptors without giving anything back: for a forked child, which would keep the locks alive."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def _create(self, path: Path) -> int | None:
        """Make a claim that did not exist, with its owner and its lock from the first moment; None if it exists."""
        draft = self._draft(path)
        # The umask decides who else may write, so that others can take over the claim in a team folder.
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | REGULAR_FILE_FLAGS, 0o666)
        try:
            with with_filename(draft):
                self._sign(descriptor)
            try_lock(descriptor)
            os.link(draft, path)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, FileExistsError):
                return None
            if isinstance(error, OSError) and error.errno in _NO_LINKS:
                return self._create_in_place(path)
            raise
        finally:
            draft.unlink(missing_ok=True)
        return descriptor

    def _create_in_place(self, path: Path) -> int | None:
        """Make a claim on a file system without hard links. A claim without an owner counts as fresh for `stale_s`."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | REGULAR_FILE_FLAGS, 0o666)
        except FileExistsError:
            return None
        try:
            # Another process may hold the lock for a moment, to check whether this claim is abandoned.
            for _ in range(_LOCK_TRIES):
                if try_lock(descriptor) is not False:
                    break
                time.sleep(0.01)
            with with_filename(path):
                self._sign(descriptor)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    def _draft(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self.token}")

    def _sign(self, descriptor: int) -> None:
        # One write of fixed length: whoever is killed here leaves the old owner or the new one.
        owner = json.dumps({"token": self.token, "machine": machine(), "pid": os.getpid()})
        os.pwrite(descriptor, owner.ljust(RECORD_BYTES).encode(), 0)
        os.ftruncate(descriptor, RECORD_BYTES)  # a longer file would never be read as a claim again

    def _take_over(self, path: Path) -> int | None:
        """Take over a claim whose owner is gone; None if the owner is alive, or another process was faster.

        Raises:
            CacheError: the claim must be replaced, but that is not allowed.
        """
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None  # just released; it can be claimed at the next try
        if not stat.S_ISREG(status.st_mode):
            return self._replace(path, status)  # never our own, since claims appear as complete files
        descriptor = open_claim(path)
        if descriptor is None:
            return self._replace(path, status) if self._is_stale(path, status) else None
        try:
            locked = try_lock(descriptor)
            # Between opening and locking, the owner may have released the claim and another taken it.
            if locked is False or not is_open_file(descriptor, path):
                return None
            if not self._is_abandoned(path, os.fstat(descriptor), locked):
                return None
            if not may_write(descriptor):
                return self._replace(path, os.fstat(descriptor))
            self._sign(descriptor)
            with suppress(OSError):  # some file systems cannot set times; the write did
                os.utime(descriptor)
            taken, descriptor = descriptor, -1
            return taken
        except CacheError:
            raise
        except OSError:
            return None
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _replace(self, path: Path, judged: os.stat_result) -> int | None:
        """Replace an abandoned claim by our own.

        Raises:
            CacheError: the abandoned claim is a folder that is not empty, or may not be removed.
        """
        try:
            if stat.S_ISDIR(judged.st_mode):
                path.rmdir()
            else:
                aside = self._draft(path)
                path.rename(aside)
                if not os.path.samestat(aside.lstat(), judged):
                    aside.rename(path)  # another process was faster, and this is its claim
                    return None
                aside.unlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(
                f"{path}: nobody holds this claim, but it cannot be removed ({error.strerror}); "
                "remove it, or ask its owner to, and run the command again"
            ) from None
        return self._create(path)

    def _is_abandoned(self, path: Path, status: os.stat_result, locked: bool | None) -> bool:
        owner = read_owner(path)
        if locked and owner is not None and owner.get("machine") == machine():
            return True  # its lock was free, so its process is gone; without locks only the heartbeat tells
        return self._is_stale(path, status)

    def _is_stale(self, path: Path, status: os.stat_result) -> bool:
        """Return whether a claim was not touched for `stale_s`, by the clock of the file system or by our own watch."""
        age, now = self.now() - status.st_mtime, time.monotonic()
        if age > self._stale_s or age < -DAY_S:
            return True
        touched, since = self._seen.setdefault(path.name, (status.st_mtime_ns, now))
        if touched != status.st_mtime_ns:
            self._seen[path.name] = (status.st_mtime_ns, now)
            return False
        return now - since > self._stale_s

    def now(self) -> float:
        """Seconds since the epoch by the clock of the folder's file system, which may be another machine's."""
        probe = self._folder / f"clock-{self.token}"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return now

    def _beat(self, heartbeat_s: float) -> None:
        while not self._stop.wait(heartbeat_s):
            with self._guard:
                for descriptor in self._held.values():
                    self._touch(descriptor)

    def _touch(self, descriptor: int) -> None:
        with suppress(OSError):  # the disk's error belongs to whoever writes the block
            try:
                os.utime(descriptor)
            except OSError:
                self._sign(descriptor)  # some file systems cannot set times, but a write updates them


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keep every writer out of the cache whose journal is `folder`, for what must not happen beside one.

    Raises:
        CacheBusyError: a process is writing the cache.
    """
    claims = Claims(folder)
    try:
        if not claims.acquire(SETUP) or set(live_claims(folder, claims.now())) - {SETUP}:
            raise CacheBusyError(
                f"{folder.parent}: another process is writing this cache; wait for it or stop it"
            )
        yield
    finally:
        claims.close()


def _forget_in_child() -> None:
    for claims in _open:
        claims.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
