"""SHA-256 of many files with several threads: hashing and reading release the interpreter lock, so it runs at disk speed."""

import hashlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

from featcache.store.errors import CacheError
from featcache.store.regular_files import open_regular

PIECE_BYTES = 2**20


def sha256_files(paths: Sequence[Path], threads: int) -> Generator[str | OSError | CacheError, None, None]:
    """Yield SHA-256 of each file as 64 hex digits, in order, each as soon as it and those before it are known.

    Args:
        paths: the files.
        threads: files that are read at the same time.

    Returns:
        For a file that cannot be read, the error: one bad sector must not end the check of all others.
    """
    buffers = local()

    def digest(path: Path) -> str | OSError | CacheError:
        # One buffer per thread: fresh memory for every piece would cost as much as the copy into it.
        if not hasattr(buffers, "piece"):
            buffers.piece = memoryview(bytearray(PIECE_BYTES))
        try:
            return _sha256(path, buffers.piece)
        except (OSError, CacheError) as error:
            return error

    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(digest, paths)
    finally:
        pool.shutdown(cancel_futures=True)


def _sha256(path: Path, piece: memoryview) -> str:
    digest = hashlib.sha256()
    descriptor, _ = open_regular(path)
    with open(descriptor, "rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()
