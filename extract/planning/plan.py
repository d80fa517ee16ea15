"""Plan a run: where the cache goes, what it is to hold, and in which batches."""

from collections.abc import Sequence
from pathlib import Path

from featcache.extraction.forward_pass.capacity import enough_memory
from featcache.extraction.forward_pass.device_errors import one_line_device_errors
from featcache.extraction.forward_pass.selftest import self_test
from featcache.extraction.requests.inputs import Inputs
from featcache.extraction.running.batch_size import fitting_batch_size
from featcache.extraction.running.loading import LoadedBackbone
from featcache.extraction.running.unfinished import recorded_batch_size
from featcache.store.catalogue import Entry, cache_directory
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.spec import CacheSpec


def plan_run(
    inputs: Inputs,
    loaded: LoadedBackbone,
    spec: CacheSpec,
    entry: Entry | None,
    wanted: Inventory,
    search: Sequence[Path],
) -> tuple[Path, Plan]:
    """Test the backbone, and return the folder of the cache and the plan.

    Args:
        inputs: the request with model and dataset.
        loaded: the backbone.
        spec: the spec of the cache.
        entry: the cache that has this spec; None if there is none.
        wanted: everything requested.
        search: roots; a new cache goes under the first.

    Raises:
        BackboneError: the features would be wrong, or the device has too little memory.
    """
    with one_line_device_errors(loaded.device), enough_memory(loaded.device):
        self_test(loaded.backbone, loaded.device)
        for side in sorted({view.input_size for view in wanted.views.values() if view.input_size}):
            self_test(loaded.backbone.at_size(side), loaded.device)
    if entry is None or search[0] not in entry.path.parents:
        # What was begun under another root is that root's business: it may be shared, or read-only.
        path = cache_directory(search[0], inputs.source.name, inputs.model.given, spec)
    else:
        path = entry.path
    # The recorded one is the writer's choice in any case; a dry run, too, has to go by it.
    size = recorded_batch_size(path) or inputs.request.batch_size
    return path, Plan(spec, wanted, size or fitting_batch_size(loaded.backbone, loaded.device, spec, wanted))
