"""What a person reads who comes upon a pushed cache: README.md in its folder, and the dataset card on the Hub."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.store.arrays import ArrayInfo
from featcache.store.manifest import Manifest
from featcache.store.text import printable
from featcache.store.transfer.catalogue import CatalogueEntry, manifest_digest
from featcache.store.transfer.remotes.base import Remote

MADE_BY_US = "<!-- written by featcache push; it is written again by the next one -->"
LICENCE_FIELDS = ("license", "licence")
CITATION_FIELDS = ("citation", "homepage")


def cache_card(manifest: Manifest, provenance: Mapping[str, Any], address: str) -> str:
    """The card of one cache.

    Args:
        manifest: of the whole cache.
        provenance: what is known of where it comes from; what is not known is left out.
        address: where it is pushed to, without credentials.
    """
    backbone, inventory = manifest.spec.backbone, manifest.inventory
    model, dataset = (_first(provenance, names) for names in ("model_names", "dataset_names"))
    facts = [
        ("model", model or backbone.architecture),
        (
            "backbone",
            f"{backbone.architecture}, {backbone.num_layers} blocks of width {backbone.width}, {backbone.input_size} px",
        ),
        ("weights", f"SHA-256 {backbone.weights_digest}"),
        ("dataset", dataset or ""),
        ("classes", str(len(inventory.class_names))),
        ("stored as", f"{manifest.spec.dtype}, forward pass in {manifest.spec.precision}"),
        ("size", f"{inventory.num_bytes / 1e6:,.1f} MB"),
        ("key", manifest.spec.key),
        ("digest of the manifest", manifest_digest(manifest)),
        ("licence of the data", _known(provenance, LICENCE_FIELDS)),
        ("citation", _known(provenance, CITATION_FIELDS)),
    ]
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts if value)
    splits = "\n".join(
        f"| {split.name} | {split.num_samples} | {_cell('; '.join(map(_array, _token_arrays(split.arrays))))} |"
        for split in inventory.splits.values()
    )
    return f"""# {_cell(dataset or "unnamed")}, features of {_cell(model or backbone.architecture)}

All-layer token features of a frozen vision transformer, extracted by featcache. No image is in here.

| | |
|---|---|
{rows}

| split | samples | features |
|---|---|---|
{splits}

    featcache pull {address}
    featcache pull {address} --layers last         # a part; the rest can follow
    featcache probe --head attentive --cache {address}

Every file is checked against the SHA-256 in manifest.json as it arrives. Any Zarr v3 reader opens `features.zarr`.
"""


def dataset_card(entries: Sequence[CatalogueEntry], remote: Remote, licences: Sequence[str]) -> str:
    """The card of a Hub repository: a table of the caches in it, below what the Hub reads.

    Args:
        entries: the caches.
        remote: the repository.
        licences: licences of the data that are known; the Hub takes one, and lists none if there are none.
    """
    header: dict[str, Any] = {"tags": ["featcache", "image-features"], "viewer": False}
    if len(set(licences)) == 1:
        header["license"] = licences[0]
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


def known_licence(provenance: Mapping[str, Any]) -> str | None:
    """The licence of the data, where the cache knows it."""
    return _known(provenance, LICENCE_FIELDS) or None


def _known(provenance: Mapping[str, Any], fields: Sequence[str]) -> str:
    """A field of provenance, or of what it says of the dataset."""
    inside = provenance.get("dataset")
    for place in (provenance, inside if isinstance(inside, dict) else {}):
        for field in fields:
            if isinstance(place.get(field), str):
                return str(place[field])
    return ""


def _first(provenance: Mapping[str, Any], field: str) -> str:
    names = provenance.get(field)
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _token_arrays(arrays: Mapping[str, ArrayInfo]) -> list[ArrayInfo]:
    return [array for array in arrays.values() if array.layers]


def _array(array: ArrayInfo) -> str:
    layers = (
        array.layers[0]
        if len(array.layers) == 1
        else f"{array.layers[0]} to {array.layers[-1]} ({len(array.layers)})"
    )
    tokens = ", ".join(array.tokens) if len(array.tokens) <= 4 else f"{len(array.tokens)} tokens"
    return f"{array.name}: layers {layers}, {tokens}"


def _cell(text: str) -> str:
    """Text that can stand in a table, whatever it is."""
    return printable(" ".join(text.split())).replace("|", "\\|")[:400]
