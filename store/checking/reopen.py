"""Turn a complete cache into an unfinished one that lacks some blocks, so that the next extraction redoes them.

If the process is killed, the cache is either still complete or a valid unfinished one: the journal has the records of all
other blocks before the manifest is removed.
"""

from collections.abc import Collection
from pathlib import Path

from featcache.store import journal
from featcache.store.errors import CacheBusyError, PartialCacheError
from featcache.store.files import sync_directory
from featcache.store.inventory import Block
from featcache.store.journal import JOURNAL, Plan
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.quantization import scale_chunks
from featcache.store.writing.claims import sole_owner


def reopen(directory: Path, dropped: Collection[Block]) -> None:
    """Remove some blocks from a complete cache.

    Raises:
        PartialCacheError: the cache is a partial copy.
        CacheBusyError: another process is writing the cache.
    """
    manifest = Manifest.read(directory)
    if manifest.whole is not None:
        raise PartialCacheError(f"{directory} is a partial copy, of which no block can be extracted again")
    (directory / JOURNAL).mkdir(exist_ok=True)
    with sole_owner(directory / JOURNAL):
        if Manifest.read(directory) != manifest:
            raise CacheBusyError(f"{directory} has just changed; run the command again")
        write_journal(directory, manifest, dropped)
        (directory / MANIFEST_FILE).unlink()
        sync_directory(directory)


def drop_committed(directory: Path, dropped: Collection[Block]) -> None:
    """Remove some blocks from an unfinished cache.

    Raises:
        CacheBusyError: another process is writing the cache.
    """
    with sole_owner(directory / JOURNAL):
        journal.drop(directory, dropped)


def write_journal(directory: Path, manifest: Manifest, dropped: Collection[Block]) -> None:
    """Write the journal of the future unfinished cache, while the manifest still hides it."""
    # An earlier repair may have written the record of a block that was damaged since.
    journal.drop_records(directory / JOURNAL)
    scales = {path: manifest.metadata[path] for path in scale_chunks(manifest.inventory.scale_arrays)}
    Plan(manifest.spec, manifest.inventory, manifest.batch_size, scales).write(directory)
    for record in manifest.blocks:
        if record.block not in dropped:
            journal.commit(directory, record)
    sync_directory(directory)
