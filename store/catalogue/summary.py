"""Summary of a cache for lists, read without parsing the whole manifest.

Nearly all of a manifest is the table of files with their digests, half a megabyte for a large backbone. It comes last
in the document, so the spec and the inventory are read from the head of the file, and its end shows that the file is
whole. The key is held to the spec; the digests are what `featcache verify` is for.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from featcache.store.catalogue.entries import Entry
from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, field, parse_json
from featcache.store.inventory import Inventory
from featcache.store.manifest import MANIFEST_FILE, Manifest, read_inventory
from featcache.store.partial_copy import PartialCopy, describe_partial
from featcache.store.regular_files import open_regular
from featcache.store.spec import CacheSpec

HEAD_BYTES = 2**14
MAX_HEAD_BYTES = 2**24
# `files.write_sealed` indents by one space, so only a field of the document itself can stand behind ``\n "``: line
# breaks inside a string are escaped.
_TABLE = b',\n "blocks": ['
_END = re.compile(rb'"digest": "[0-9a-f]{64}"\n}\n?\Z')


@dataclass(frozen=True)
class Summary:
    """Summary of a cache."""

    inventory: Inventory
    dtype: str
    missing_blocks: int
    """Blocks that are not committed; 0 for a complete cache."""
    part: str = ""
    """Description of the content of a partial copy; `inventory` is that content alone."""

    @property
    def num_layers(self) -> int:
        """Layers that are cached: the most that any split has."""
        splits = self.inventory.splits.values()
        layers = ({layer for array in split.arrays.values() for layer in array.layers} for split in splits)
        return max(map(len, layers), default=0)


def summarize(entry: Entry) -> Summary:
    """Read the summary of a cache.

    Raises:
        CacheError: its metadata are damaged, as far as they were read.
    """
    if not entry.complete:
        manifest = entry.cache.manifest
        return Summary(manifest.inventory, manifest.spec.dtype, len(manifest.missing_blocks()))
    head = _head(entry.path / MANIFEST_FILE)
    if head is None:
        # Not laid out as featcache does it, which is no fault: read all of it, and complain where it is damaged.
        manifest = Manifest.read(entry.path)
        return _summary(entry.path, manifest.inventory, manifest.spec.dtype)
    where = str(entry.path / MANIFEST_FILE)
    spec = CacheSpec.from_dict(field(head, "spec", dict, where), where)
    if head.get("key") != spec.key:
        raise CacheError(f"{where}: field 'key' is {head.get('key')!r}, the spec's digest is {spec.key!r}")
    inventory = read_inventory(head, spec, where)
    if not inventory.splits:
        raise CacheError(f"{where}: field 'inventory' names no split")
    return _summary(entry.path, inventory, spec.dtype)


def _summary(directory: Path, whole: Inventory, dtype: str) -> Summary:
    held = PartialCopy.read(directory)
    here = whole if held is None else whole.common(held.inventory)
    return (
        Summary(here, dtype, 0) if here == whole else Summary(here, dtype, 0, describe_partial(here, whole))
    )


def _head(path: Path) -> JsonObject | None:
    """Return the fields before the table of files; None if the file is not whole or not laid out as expected."""
    descriptor, size = open_regular(path)
    with open(descriptor, "rb", buffering=0) as file:
        text = file.read(HEAD_BYTES) or b""
        file.seek(max(0, size - 128))
        if not _END.search(file.read(128) or b""):
            return None
        end = text.find(_TABLE)
        if end < 0:  # thousands of class names
            file.seek(0)
            text = file.read(MAX_HEAD_BYTES) or b""
            end = text.find(_TABLE)
    if end < 0:
        return None
    try:
        return parse_json(text[:end] + b"}", str(path))
    except CacheError:
        return None
