"""Files at plain addresses, fetched once and kept; an interrupted download resumes if the server still has the same version."""

import hashlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from posixpath import dirname
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from featcache.extraction.sources.data_folders import derived_path
from featcache.store.errors import DatasetError, RemoteError
from featcache.store.progress import Reporter

if TYPE_CHECKING:
    from featcache.store.network.http_client import HttpClient

THREADS = 8
MAX_NAME_BYTES = 150
"""Longest file name in bytes; a token and an ending are appended to it."""
# Query fields of signed addresses: another signature does not name another file.
_SIGNATURE = re.compile(
    r"x-(amz|goog)-.*|signature|expires|key-pair-id|policy|awsaccesskeyid|googleaccessid|s(ig|e|t|p|v|r|pr|ip|koid|ktid|kt|ke|ks|kv)",
    re.IGNORECASE,
)


def is_address(text: str) -> bool:
    """Return whether `text` is an address rather than a path."""
    return text.lower().startswith(("http://", "https://"))


def fetch_all(addresses: Sequence[str], reporter: Reporter) -> list[Path]:
    """Fetch some files; return their local copies, in order.

    Raises:
        RequestError: the end of the login in an address is ambiguous; nothing was sent.
        DatasetError: a file cannot be fetched; the message names it.
    """
    from featcache.store.address import require_clear_login

    for address in addresses:
        require_clear_login(address)
    targets = [_target(address) for address in addresses]
    missing = {
        target: address for address, target in zip(addresses, targets, strict=True) if not target.is_file()
    }
    if missing:
        _fetch(missing, reporter)
    return targets


def _fetch(missing: dict[Path, str], reporter: Reporter) -> None:
    from featcache.store.network.concurrency import run_concurrently
    from featcache.store.network.http_client import HttpClient

    done, lock = 0, Lock()
    client = HttpClient(anywhere=True, refused="a login for the host belongs into ~/.netrc")
    with reporter.progress("downloading", "files") as update:

        def fetch(target: Path, address: str) -> None:
            nonlocal done
            _fetch_file(client, address, target, reporter)
            with lock:
                done += 1
                update(done, len(missing))

        try:
            run_concurrently(
                [partial(fetch, target, address) for target, address in missing.items()], THREADS
            )
        finally:
            client.close()


def _fetch_file(client: "HttpClient", address: str, target: Path, reporter: Reporter) -> None:
    from featcache.store.transfer.fetch import fetch_file

    where = _shown(address)
    try:
        fetch_file(client, address, where, target, lambda _: None, reporter.message)
    except RemoteError as error:
        raise DatasetError(
            f"{where} could not be fetched: {str(error).removeprefix(f'{where}: ')}"
        ) from error


def _shown(address: str) -> str:
    from featcache.store.address import redacted

    return redacted(address)


def _target(address: str) -> Path:
    """Return the local path of a file: files of one remote folder lie side by side under their own names.

    Raises:
        DatasetError: the address names no file.
    """
    try:
        parts = urlsplit(address)
    except ValueError:
        raise DatasetError(f"{_shown(address)} is no address") from None
    name = parts.path.rpartition("/")[2]
    if name in ("", ".", "..") or not name.isprintable():
        raise DatasetError(
            f"{_shown(address)} names no file; write the address of one, such as https://HOST/0.tar"
        )
    query = [(key, value) for key, value in parse_qsl(parts.query) if not _SIGNATURE.fullmatch(key)]
    if query:  # two files may differ in it alone
        name = f"{hashlib.sha256(repr(query).encode()).hexdigest()[:8]}-{name}"
    if len(name.encode()) > MAX_NAME_BYTES:
        name = f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{Path(name).suffix[:16]}"
    folder = f"{parts.scheme}://{parts.netloc}{dirname(parts.path)}".rstrip("/")
    return derived_path("downloads", folder, "files") / name
