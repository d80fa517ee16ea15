"""What a run is going to write: the arrays of every split, for a backbone, a dataset and a feature selection."""

from typing import TYPE_CHECKING

from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.sources.base import Source
from featcache.extraction.sources.samples import max_id_bytes
from featcache.store.inventory import Inventory
from featcache.store.planning import plan_arrays

if TYPE_CHECKING:
    from featcache.extraction.backbones.base import Backbone


def plan_inventory(
    backbone: "Backbone", source: Source, selection: FeatureSelection, dtype: str
) -> Inventory:
    """Lay out all that is wanted, whether or not a cache holds some of it.

    Args:
        backbone: tells layers, tokens and widths.
        source: tells splits and samples.
        selection: which features are wanted.
        dtype: stored type of the features.

    Raises:
        UnknownNameError: a split or layer does not exist.
        RequestError, BackboneError: the backbone has no such tokens or tap.
    """
    # Imports torch, as everything that has a backbone does.
    from featcache.extraction.decoding.views import check_views

    views = selection.views_of(backbone.spec)
    check_views(views, backbone)
    arrays = selection.token_arrays(backbone)
    # Over all splits, so that a split that is added later has the same layout.
    id_bytes = max(max_id_bytes(part) for part in source.splits.values())
    targets = source.targets
    splits = {
        name: plan_arrays(
            name,
            len(source.splits[name]),
            arrays,
            backbone.spec.width,
            dtype,
            id_bytes,
            content_digest=True,
            targets=targets,
        )
        for name in selection.choose_splits(list(source.splits))
    }
    projection = backbone.projection
    shape = None if projection is None else (projection.shape[0], projection.shape[1])
    named = {view.name: view for view in views}
    return Inventory(splits, targets.names, shape, targets.type, targets.units, named)
