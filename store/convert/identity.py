"""Spec, provenance and card of a cache of imported features."""

import time

from featcache.store.convert.source import ImportSource
from featcache.store.errors import DatasetError
from featcache.store.files import JsonObject, canonical_json, sha256_hex
from featcache.store.layers import FINAL
from featcache.store.spec import BackboneSpec, CacheSpec
from featcache.store.text import encodable


def carried_spec(source: ImportSource, digests: dict[str, str]) -> CacheSpec | None:
    """Return the spec that an export of featcache brings; None for foreign data.

    Raises:
        DatasetError: a split is not what was exported.
    """
    if source.document is None:
        return None
    for split, digest in digests.items():
        if source.document.digests.get(split) != digest:
            raise DatasetError(
                f"{source.where}: split {split} is not what was exported, so it cannot have that cache's key; "
                "export it again, or import it as foreign data (--features for HDF5, without meta.json for a folder)"
            )
    return source.document.spec


def foreign_spec(source: ImportSource, digests: dict[str, str], model: str) -> CacheSpec:
    """Return the spec of foreign features: their digests stand for weights that nobody knows."""
    features = source.splits[0].features
    columns = {
        split.name: sha256_hex(b"".join(split.columns[name].tobytes() for name in ("label", "sample_id")))
        for split in source.splits
    }
    backbone = BackboneSpec(
        # No extraction has such an architecture, so no key of one can be the same.
        architecture=f"imported:{model}",
        weights_digest=sha256_hex(canonical_json(digests)),
        num_layers=1 + max((int(layer) for layer in source.splits[0].layers if layer != FINAL), default=0),
        width=features.width,
        input_size=1,
        preprocessing={"unknown": True},
    )
    identity = {"kind": "imported", "content": columns, "class_names": list(source.targets.names)}
    return CacheSpec(backbone, identity, features.stored, "fp32")


def provenance(source: ImportSource, names: dict[str, str]) -> JsonObject:
    """Return the content of provenance.json."""
    imported = {"imported_from": encodable(source.where), "imported_at": round(time.time(), 3)}
    if source.document is not None:
        return {**source.document.provenance, **imported}
    own = {"model_names": [names["model"]], "dataset_names": [names["dataset"]]}
    return {**own, "completed_at": imported["imported_at"], **imported}


def card(source: ImportSource, names: dict[str, str], spec: CacheSpec) -> str:
    """Return the README.md of the cache."""
    rows = "\n".join(f"| {split.name} | {split.features.num_samples} |" for split in source.splits)
    return f"""# {names["dataset"]}, features of {names["model"]}

Imported by featcache from {encodable(source.where)}. Read it with `featcache probe`, `featcache.open(DIR)`, or any Zarr v3 reader
(`features.zarr`).

| | |
|---|---|
| backbone | {spec.backbone.architecture} (width {spec.backbone.width}) |
| key | {spec.key} |
| stored as | {spec.dtype} |
| classes | {len(source.targets.names)} |

| split | samples |
|---|---|
{rows}
"""
