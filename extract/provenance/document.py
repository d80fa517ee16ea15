"""Where a cache comes from: for people and for reproduction, never part of its key."""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch

from featcache.devices.precision import MIXED, autocast_dtype
from featcache.extraction.models.preprocessing import size_text
from featcache.extraction.provenance.public_names import public_command, public_name
from featcache.store import journal
from featcache.store.corrections import FIELD as CORRECTIONS
from featcache.store.corrections import known_corrections
from featcache.store.files import JsonObject
from featcache.store.journal import FEATURES, Plan
from featcache.store.planning import CONTENT_DIGEST
from featcache.store.reading.content import content_digest
from featcache.store.reading.split import SplitReader
from featcache.store.writing.writer import CacheWriter

_PACKAGES = ("featcache", "torch", "timm", "open_clip_torch", "torchvision", "numpy", "zarr", "pillow")
_EXTRAS = ("transformers",)
"""Packages that may be missing; their version stands in the provenance where they are installed."""


@dataclass(frozen=True)
class RunFacts:
    """Facts about the run that completes a cache."""

    command: str
    """The command line."""
    started_at: float
    """Time when the run began, seconds since the epoch."""
    samples: int
    """Samples that the run extracted."""
    seconds: float
    """Time of the passes and of their data, without loading."""
    dataset_summary: str
    """Description of dataset and preprocessing in one line."""
    observed: JsonObject
    """Counts of images that were not used exactly as stored."""
    int8: JsonObject
    """Counts of int8 values and of those that were clipped; empty for other types."""


def provenance(
    writer: CacheWriter,
    weights_source: JsonObject,
    device: torch.device,
    names: Mapping[str, Sequence[str]],
    run: RunFacts,
) -> JsonObject:
    """Return the content of provenance.json, or of one addition in it.

    Args:
        writer: the writer of the cache; all blocks are committed.
        weights_source: where the weights came from.
        device: where the backbone ran.
        names: names of model and dataset as given and as resolved.
        run: facts about the run that completed the cache.
    """
    plan = writer.plan
    mixed = plan.spec.precision == MIXED
    device_name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "model_names": list(dict.fromkeys(map(public_name, names["model"]))),
        "dataset_names": list(dict.fromkeys(map(public_name, names["dataset"]))),
        "weights_source": weights_source,
        "command": public_command(run.command),
        "started_at": round(run.started_at, 3),
        "completed_at": round(time.time(), 3),
        "samples_in_last_run": run.samples,
        "seconds_of_last_run": round(run.seconds, 3),
        "dataset": run.dataset_summary,
        "images_of_last_run": run.observed,
        **_reused(writer),
        **({"int8_of_last_run": run.int8} if run.int8 else {}),
        CORRECTIONS: known_corrections(),
        "arrays": {
            split.name: {a.name: list(a.layers) for a in split.arrays.values() if a.layers}
            for split in plan.inventory.splits.values()
        },
        **_content(writer),
        "device": f"{device.type}: {device_name}",
        "autocast_dtype": str(autocast_dtype(device)).removeprefix("torch.") if mixed else None,
        "batch_size": plan.batch_size,
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES} | dict(_versions_of_extras()),
    }


def _versions_of_extras() -> Iterator[tuple[str, str]]:
    for package in _EXTRAS:
        with suppress(PackageNotFoundError):
            yield package, version(package)


def _reused(writer: CacheWriter) -> JsonObject:
    """Number of rows that were taken over from other caches, with key and digest of each; nothing where there are none."""
    rows = journal.reused_rows(writer.directory, writer.plan.inventory)
    listed = [
        {"key": name.partition("@")[0], "digest": name.partition("@")[2], "rows": count}
        for name, count in sorted(rows.items())
    ]
    return {"reused": listed} if listed else {}


def _content(writer: CacheWriter) -> JsonObject:
    """Digest of the decoded images and ids of those that failed, of the splits that are written with their columns."""
    digests, skipped = {}, {}
    for split in writer.plan.inventory.splits.values():
        if CONTENT_DIGEST in split.arrays:
            reader = SplitReader(writer.directory / FEATURES, split, split.blocks())
            digests[split.name] = content_digest(reader)
            failed = np.flatnonzero(~reader.valid())
            ids = reader.sample_ids() if failed.size else []
            skipped[split.name] = [ids[row] for row in failed]
    return {"content_sha256": digests, "skipped": skipped}


def card(plan: Plan, names: Mapping[str, Sequence[str]], about: str = "") -> str:
    """Return the README.md of a cache: what it is and how to use it, for a person who finds the folder.

    Args:
        plan: what the cache holds.
        names: of model and dataset.
        about: sections on the dataset.
    """
    backbone = plan.spec.backbone
    rows = "\n".join(f"| {split.name} | {split.num_samples} |" for split in plan.inventory.splits.values())
    dataset, model, explicit = map(public_name, (names["dataset"][0], names["model"][0], names["model"][-1]))
    return f"""# {dataset}, features of {model}

All-layer token features (class token and average of the patch tokens) of a frozen vision transformer,
extracted by featcache. Read it with `featcache probe`, `featcache.open(DIR)`, or any Zarr v3 reader (`features.zarr`).

| | |
|---|---|
| backbone | {explicit} ({backbone.num_layers} blocks, width {backbone.width}, {size_text(backbone.image_size)}) |
| key | {plan.spec.key} |
| stored as | {plan.spec.dtype}, forward pass in {plan.spec.precision} |
| classes | {len(plan.inventory.class_names) if plan.inventory.targets.labeled else "none, no labels"} |

| split | samples |
|---|---|
{rows}
{about}"""
