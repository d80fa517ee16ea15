"""The user's folders, which a container or a batch system may lack."""

import os
from pathlib import Path

from featcache.store.errors import RequestError


def expanded(path: str | Path) -> Path:
    """Return `path` with a leading ``~`` or ``~user`` replaced by that home folder.

    Raises:
        RequestError: the home folder is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RequestError(f"{path}: there is no such home folder here; name the folder in full") from None


def user_cache() -> Path:
    """Return the folder of the user's caches: ``$XDG_CACHE_HOME``, else ``~/.cache``.

    Raises:
        RequestError: the user has no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise RequestError(
            "there is no home folder for caches (HOME is not set, and this user has no entry); set FEATCACHE_ROOT, "
            "or XDG_CACHE_HOME for all that is kept"
        ) from None
