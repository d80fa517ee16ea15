"""Repair a pulled copy: fetch damaged files again from its origin, while the copy stays usable."""

from pathlib import Path

from featcache.store.address import parse_address
from featcache.store.checking.verify import Verification
from featcache.store.errors import CacheError, FeatcacheError
from featcache.store.inventory import Inventory
from featcache.store.manifest import Manifest
from featcache.store.partial_copy import PartialCopy, check_command, read_origin
from featcache.store.progress import Reporter
from featcache.store.transfer.catalogue import find_cache, not_found
from featcache.store.transfer.manifests import fetch_manifest
from featcache.store.transfer.pull import PullResult, fetch_part


def repair_copy(verification: Verification, reporter: Reporter | None = None) -> PullResult | None:
    """Fetch the files again that `verify` found damaged in a copy.

    Args:
        verification: the damage.
        reporter: receives the progress.

    Returns:
        The result of the pull; None if the cache is no copy, or its origin is unknown.

    Raises:
        CacheError: a file cannot be fetched; the copy is unchanged, and the message has the command to run again.
    """
    origin = read_origin(verification.directory)
    if origin is None or not verification.complete:
        return None
    try:
        remote, name = find_cache(parse_address(origin))
        with remote:
            theirs = fetch_manifest(remote, name)
            if theirs is None:
                raise not_found(remote, name)
            part = _part(verification.directory, theirs.manifest)
            return fetch_part(
                remote, name, theirs, part, verification.directory, check=True, reporter=reporter
            )
    except FeatcacheError as error:
        command = check_command(verification.directory, origin, None)
        raise CacheError(
            f"{verification.directory} is as it was: what is damaged could not be fetched again ({error}); "
            f"try again later, or run `{command}` with the address of another copy"
        ) from error


def _part(directory: Path, theirs: Manifest) -> Inventory:
    """Return the part of the remote's cache that the copy holds.

    Raises:
        CacheError: held.json is damaged, so the part is not known.
    """
    held = PartialCopy.read(directory)
    try:
        ours = Manifest.read(directory).inventory
    except CacheError:  # damaged here, so read the remote's
        ours = theirs.inventory
    return theirs.inventory.common(ours if held is None else held.inventory)
