"""Claims: how several processes divide the work on one cache, on one machine or over a shared folder.

A claim is a file that its owner touches now and then. It is taken over when its owner is gone: on the same machine at
once, because the kernel drops the owner's file lock; elsewhere when it has not been touched for a while. Claims save
work, they do not guard data: what a block's files hold never depends on them.
"""

import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread
from weakref import WeakSet

from featcache.store.errors import CacheBusyError
from featcache.store.files import JsonObject, is_open_file, naming, try_lock
from featcache.store.plain import refuse_link

_open: "WeakSet[Claims]" = WeakSet()

HEARTBEAT_S = 10.0
STALE_S = 60.0
SUFFIX = ".claim"
RECORD_BYTES = 256
SETUP = "setup"
"""The claim that every writer holds while it begins."""


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
        self._guard = Lock()
        self._stop = Event()
        self._heartbeat = Thread(target=self._beat, args=(heartbeat_s,), daemon=True)
        self._heartbeat.start()
        _open.add(self)

    def acquire(self, name: str) -> bool:
        """Claim `name`; False if another live process holds it.

        Raises:
            FileNotFoundError: the folder is gone.
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

    def wait(self, name: str, until: Callable[[], bool] = lambda: False, poll_s: float = 0.05) -> bool:
        """Claim `name` as soon as it is free; False if `until` held before, also where the folder went with it.

        Raises:
            FileNotFoundError: the folder is gone, and so is the one that it lay in, or `until` does not hold.
        """
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
            time.sleep(poll_s)

    def holds(self, name: str) -> bool:
        """Whether the claim is still this process's own: a process that slept too long may have lost it.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        owner = _read_owner(self._folder / f"{name}{SUFFIX}")
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
            owner = _read_owner(path)
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
        draft = path.with_name(f".{path.name}.{self.token}")
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with naming(draft):
                self._sign(descriptor)
            try_lock(descriptor)
            os.link(draft, path)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, FileExistsError):
                return None
            raise
        finally:
            draft.unlink(missing_ok=True)
        return descriptor

    def _sign(self, descriptor: int) -> None:
        # One write of fixed length: whoever is killed here leaves the old owner or the new one.
        owner = json.dumps({"token": self.token, "machine": _machine(), "pid": os.getpid()})
        os.pwrite(descriptor, owner.ljust(RECORD_BYTES).encode(), 0)

    def _take_over(self, path: Path) -> int | None:
        """Open a claim whose owner is gone; None if it is alive, or if somebody else was faster."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None  # just released; it can be claimed at the next try
        except OSError:
            return None  # a link, or a folder: nothing of ours, and never written through
        try:
            locked = try_lock(descriptor)
            # Between opening and locking, the owner may have released the claim and another taken it.
            if locked is not False and is_open_file(descriptor, path) and self._is_abandoned(path, locked):
                self._sign(descriptor)
                os.utime(descriptor)
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        return None

    def _is_abandoned(self, path: Path, locked: bool | None) -> bool:
        owner = _read_owner(path)
        if locked and owner is not None and owner.get("machine") == _machine():
            return True  # its lock was free, so its process is gone; without locks only the heartbeat tells
        return self._now() - path.stat().st_mtime > self._stale_s

    def _now(self) -> float:
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
                    with suppress(OSError):  # the disk's error belongs to whoever writes the block
                        os.utime(descriptor)


def live_claims(folder: Path) -> list[str]:
    """Names of the claims in `folder` that a live process holds; for commands that must not disturb one."""
    if not folder.is_dir():
        return []
    visitor = Claims(folder)
    try:
        names = [path.name.removesuffix(SUFFIX) for path in sorted(folder.glob(f"*{SUFFIX}"))]
        return [name for name in names if not visitor.acquire(name)]
    finally:
        visitor.close()


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Keep every writer out of the cache whose journal is `folder`, for what must not happen beside one.

    Raises:
        CacheBusyError: a process is writing the cache.
    """
    claims = Claims(folder)
    try:
        if not claims.acquire(SETUP) or set(live_claims(folder)) - {SETUP}:
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


@cache
def _machine() -> str:
    """A name for the running kernel, within which file locks tell who is alive."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _read_owner(path: Path) -> JsonObject | None:
    try:
        owner = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None
