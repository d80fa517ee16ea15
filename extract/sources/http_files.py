"""Files at plain addresses, fetched once and kept; a download that broke off goes on where it was."""

import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from featcache.extract.sources.places import derived
from featcache.store.errors import DatasetError
from featcache.store.progress import Reporter

THREADS = 8
TIMEOUT_S = 30.0
CHUNK_BYTES = 2**20


def is_address(text: str) -> bool:
    """Whether `text` is an address rather than a path."""
    return text.startswith(("http://", "https://"))


def fetch_all(addresses: Sequence[str], reporter: Reporter) -> list[Path]:
    """Local copies of some files, in order.

    Raises:
        DatasetError: one cannot be had; the message names it.
    """
    # By folder, so that shards of one dataset lie side by side under their own names.
    targets = [
        derived("downloads", one.rpartition("/")[0], "files") / Path(urlsplit(one).path).name
        for one in addresses
    ]
    with reporter.progress("downloading", "files") as update, ThreadPoolExecutor(THREADS) as pool:
        done = []
        try:
            for path in pool.map(_fetch, addresses, targets):
                done.append(path)
                update(len(done), len(addresses))
        finally:
            pool.shutdown(cancel_futures=True)
        return done


def _fetch(address: str, target: Path) -> Path:
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            again = have > 0 and answer.status == 206
            length = answer.headers.get("Content-Length")
            with partial.open("ab" if again else "wb") as out:
                while chunk := answer.read(CHUNK_BYTES):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
        whole = None if length is None else int(length) + (have if again else 0)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and have:  # all of it is there already
                whole = have
            else:
                raise DatasetError(f"{address} could not be fetched (status {error.code})") from None
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise DatasetError(
            f"{address} could not be fetched ({reason}); the same command goes on with it"
        ) from None
    if whole is not None and partial.stat().st_size != whole:
        raise DatasetError(
            f"{address} broke off at {partial.stat().st_size} of {whole} bytes; the same command goes on with it"
        )
    partial.replace(target)
    return target
