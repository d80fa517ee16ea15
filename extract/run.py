"""`featcache extract`, as a function: find the answer, or load the backbone and fill a cache, or add to one."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.extraction.cached.lookup import CacheLookup
from featcache.extraction.planning.estimate import Estimate, Speed
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.requests.inputs import Inputs, resolve_inputs
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.result import ExtractResult
from featcache.extraction.sources.base import Source
from featcache.store.address import Address
from featcache.store.catalogue import Entry
from featcache.store.inventory import Inventory
from featcache.store.machine import allow_open_files
from featcache.store.manifest import MANIFEST_FILE, Manifest
from featcache.store.partial_copy import require_complete_copy
from featcache.store.preprocessing import preprocessing_text
from featcache.store.progress import Reporter, Silent
from featcache.store.spec import CacheSpec
from featcache.store.writing.pending import pending_work

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone
    from featcache.extraction.running.loading import LoadedBackbone


def extract(
    request: ExtractRequest,
    search: Sequence[Path],
    *,
    backbone: "Backbone | None" = None,
    source: Source | None = None,
    reporter: Reporter | None = None,
    command: str = "",
    remotes: Sequence[Address] = (),
) -> ExtractResult:
    """Make sure that a complete cache answers `request`.

    A request that a cache under one of the roots answers returns at once, without importing torch. Otherwise the
    backbone runs once over the dataset; an earlier run that was stopped is taken up at its last committed block. To a
    complete cache goes only what it lacks: splits, taps, layers, groups of tokens.

    Args:
        request: what is wanted.
        search: roots to look in; a new cache goes under the first.
        backbone: one's own, made by `custom_backbone`; the request's `model` is then just its name.
        source: one's own dataset, made by `python_dataset`; the request's `dataset` is then just its name.
        reporter: receives messages and progress.
        command: the command line, for provenance.
        remotes: where teammates may have pushed the answer; it is pulled from there instead of being computed.

    Raises:
        RequestError, UnknownNameError: the request is wrong.
        DatasetError: the dataset cannot be used.
        BackboneError: the backbone cannot be loaded or its features would be wrong.
        InterruptedRunError: Ctrl-C; committed blocks stay.
    """
    started, reporter = time.time(), reporter or Silent()
    inputs = resolve_inputs(request, reporter, backbone, source)
    lookup = CacheLookup(inputs, search, reporter, remotes)
    answer = lookup.find_by_request()
    if answer is not None:
        return _cached(lookup, answer)
    # Imports torch, which takes seconds, so only where there is something to compute.
    from featcache.extraction.forward_pass.bfloat16_weights import in_precision
    from featcache.extraction.planning.plan import plan_run
    from featcache.extraction.reuse.candidates import reusable_caches
    from featcache.extraction.running.fill import CacheFiller

    loaded, spec, entry, wanted = _load(inputs, lookup, reporter)
    answer = lookup.find_by_key(spec, entry, wanted)
    if answer is not None:
        return _cached(lookup, answer)
    reusable = reusable_caches(request.reuse, search, spec, wanted, inputs.source.name, reporter)
    path, plan = plan_run(inputs, loaded, spec, entry, wanted, search)
    if entry is not None and entry.complete:
        lookup.note_orientation(entry.cache)
    # After the self-test, whose tolerances are those of float32.
    loaded = replace(loaded, backbone=in_precision(loaded.backbone, spec.precision))
    require_complete_copy(path, "added to")
    allow_open_files()
    filled = CacheFiller(inputs, loaded, lookup, reporter, command, started, reusable).fill(path, plan)
    return ExtractResult(
        path,
        spec.key,
        # Without a sample of its own: another process completed the cache a moment ago.
        not filled.samples,
        filled.samples,
        filled.seconds,
        filled.notes,
        filled.reused,
    )


def dry_run(request: ExtractRequest, search: Sequence[Path], *, reporter: Reporter | None = None) -> Estimate:
    """Estimate what `extract` would do, and how long it would take; arguments and errors as there. Nothing is written."""
    reporter = reporter or Silent()
    inputs = resolve_inputs(request, reporter)
    lookup = CacheLookup(inputs, search, reporter)
    answer = lookup.find_by_request()
    if answer is not None:
        return Estimate.of_complete(answer)
    from featcache.extraction.forward_pass.bfloat16_weights import in_precision
    from featcache.extraction.planning.plan import plan_run
    from featcache.extraction.reuse.candidates import reusable_caches
    from featcache.extraction.running.fill import CacheFiller
    from featcache.extraction.running.speed import images_per_second

    loaded, spec, entry, wanted = _load(inputs, lookup, reporter)
    reusable = reusable_caches(inputs.request.reuse, search, spec, wanted, inputs.source.name, reporter)
    if entry is not None and entry.complete and entry.cache.inventory.covers(wanted):
        return Estimate.of_complete(entry)
    path, plan = plan_run(inputs, loaded, spec, entry, wanted, search)
    # After the self-test, whose tolerances are those of float32.
    loaded = replace(loaded, backbone=in_precision(loaded.backbone, spec.precision))
    held = Manifest.read(path).inventory if (path / MANIFEST_FILE).exists() else None
    reporter.message("running a few batches")
    filler = CacheFiller(inputs, loaded, lookup, reporter, "", time.time(), reusable)
    with filler.forward().extractors(plan) as extractors:
        rate = images_per_second(filler.image_input(path, plan), extractors, plan)
    speed = Speed(rate, str(loaded.device), spec.precision, plan.batch_size)
    known = filler.reuse(plan).known_rows
    return Estimate(path, spec.key, wanted, held, pending_work(path, wanted), speed, known)


def _cached(lookup: CacheLookup, entry: Entry) -> ExtractResult:
    """Return a complete cache as the result, after its files are seen to be there."""
    lookup.confirm(entry)
    return ExtractResult(entry.path, entry.key, True, 0, 0.0)


def _load(
    inputs: Inputs, lookup: CacheLookup, reporter: Reporter
) -> "tuple[LoadedBackbone, CacheSpec, Entry | None, Inventory]":
    """Load the backbone; return it, the spec of the cache, the cache that has this spec, and everything requested."""
    from featcache.extraction.decoding.views import view_notes
    from featcache.extraction.planning.candidates import candidate_specs
    from featcache.extraction.running.loading import load

    loaded = load(inputs, reporter)
    spec, entry = lookup.find_spec(
        lambda identity: candidate_specs(
            inputs.request, loaded.backbone, loaded.device, identity, inputs.source.may_be_turned
        )
    )
    # Only now it is known whether images are turned upright: a cache that is there already keeps its own way.
    preprocessing, size = spec.backbone.preprocessing, spec.backbone.image_size
    if (text := preprocessing_text(preprocessing, size)) is not None:
        reporter.message(text)
    for note in view_notes(inputs.request.views, loaded.backbone):
        reporter.message(f"note: {note}")
    return loaded, spec, entry, plan_inventory(loaded.backbone, inputs.source, inputs.request, spec.dtype)
