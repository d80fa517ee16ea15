"""Cards of pushed caches for people: README.md in the folder, and the dataset card on the Hub."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.store.arrays import ArrayInfo
from featcache.store.manifest import Manifest, manifest_digest
from featcache.store.shared_card import SHARED
from featcache.store.text import escape_cell, printable
from featcache.store.transfer.catalogue import CatalogueEntry
from featcache.store.transfer.remotes.base import Remote

MADE_BY_US = "<!-- written by featcache push; it is written again by the next one -->"
_LICENSE = re.compile(r"^\| licen[cs]e \| (.+?) \|$", re.MULTILINE)
# Those of the Hub's own list that data sets have; any other is "other", with its name beside.
_HUB_LICENSES = {
    *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "pddl", "odbl", "odc-by"),
    *(
        f"cc-by{kind}-{version}"
        for kind in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd")
        for version in ("2.0", "3.0", "4.0")
    ),
}


def cache_card(card: str, manifest: Manifest, address: str) -> str:
    """Return the card of one cache: its own card, followed by facts about the shared cache.

    Args:
        card: the cache's own card, which says what it is and what its data may be used for.
        manifest: of the whole cache.
        address: where it is pushed to, without credentials.
    """
    backbone, inventory = manifest.spec.backbone, manifest.inventory
    own = card.partition(SHARED)[0].rstrip() or f"# Features of {_cell(backbone.architecture)}"
    splits = "\n".join(
        f"| {split.name} | {split.num_samples} | {_cell('; '.join(map(_array, _token_arrays(split.arrays))))} |"
        for split in inventory.splits.values()
    )
    return f"""{own}

{SHARED}

## Shared

| split | samples | features |
|---|---|---|
{splits}

| | |
|---|---|
| model | {_cell(backbone.architecture)}, weights with SHA-256 {_cell(backbone.weights_digest)} |
| key | {manifest.spec.key} |
| size | {inventory.num_bytes / 1e6:,.1f} MB |
| digest of the manifest | {manifest_digest(manifest)} |

    featcache pull {address}
    featcache pull {address} --layers last         # a part; the rest can follow
    featcache probe --head attentive --cache {address}

Every file is checked against the SHA-256 in manifest.json as it arrives. Any Zarr v3 reader opens `features.zarr`.
"""


def dataset_card(entries: Sequence[CatalogueEntry], remote: Remote, license: str | None = None) -> str:
    """Return the card of a Hub repository: a table of the caches in it, below what the Hub reads.

    Args:
        entries: the caches.
        remote: the repository.
        license: that of the data, if it is known and the same for all; there is no such field without.
    """
    header: dict[str, Any] = {"tags": ["featcache", "image-features"], "viewer": False}
    if license:
        known = license.lower().replace(" ", "-")
        header |= (
            {"license": known}
            if known in _HUB_LICENSES
            else {"license": "other", "license_name": license[:100]}
        )
    # JSON is YAML, and nothing in a name can break out of it.
    front = "\n".join(f"{name}: {json.dumps(value)}" for name, value in header.items())
    rows = "\n".join(
        f"| {entry.name.dataset} | {entry.name.model} | {entry.name.key} | {entry.num_layers} | {entry.train} | {entry.test} "
        f"| {entry.num_bytes / 1e6:,.1f} MB | {entry.digest} |"
        for entry in entries
    )
    return f"""---
{front}
---
{MADE_BY_US}
# Token features of frozen vision transformers

Made by featcache: the tokens of all layers, cached once, for heads that train in minutes. No image is in here.

| dataset | model | key | layers | train | test | size | digest |
|---|---|---|---|---|---|---|---|
{rows}

    featcache ls {remote.where()}
    featcache pull {remote.where()}/DATASET/MODEL-KEY
    featcache pull {remote.where()}/DATASET/MODEL-KEY --layers last
    featcache probe --head attentive --cache {remote.where()}/DATASET/MODEL-KEY

Each folder has a card of its own, README.md.
"""


def known_license(card: str) -> str | None:
    """Return the license of the data, where the card of a cache tells it."""
    match = _LICENSE.search(card)
    return match[1] if match else None


def _token_arrays(arrays: Mapping[str, ArrayInfo]) -> list[ArrayInfo]:
    return [array for array in arrays.values() if array.layers]


def _array(array: ArrayInfo) -> str:
    first, last, count = array.layers[0], array.layers[-1], len(array.layers)
    layers = f"layer {first}" if count == 1 else f"{count} layers, {first} to {last}"
    tokens = ", ".join(array.tokens) if len(array.tokens) <= 4 else f"{len(array.tokens)} tokens"
    return f"{array.name}: {layers}, {tokens}"


def _cell(text: str) -> str:
    """Return any text in a form that can stand in a table."""
    return escape_cell(printable(" ".join(text.split()))[:400])
