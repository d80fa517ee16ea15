"""Notes for the user on a cache before heads are trained on it. No torch."""

from collections.abc import Iterator

from featcache.probing.heads import get_head
from featcache.probing.heads.info import ZERO_SHOT
from featcache.probing.published import preprocessing_note, published_model
from featcache.probing.requests.jobs import WITH_TEXT_TOWER, held_layers
from featcache.probing.requests.request import BEST_LAYER, ProbeRequest
from featcache.store.layers import as_layers
from featcache.store.preprocessing import preprocessing_parts
from featcache.store.reading.reader import Cache

PARITY = "paper-parity"


def notes(cache: Cache, request: ProbeRequest) -> Iterator[str]:
    """Yield one line for each assumption."""
    if request.protocol.name == PARITY and (model := _published_model(cache)) is not None:
        yield f"{PARITY}: {preprocessing_note(model, preprocessing_parts(cache.spec.backbone))}"
    if request.protocol.name == PARITY and "quickgelu" in cache.spec.backbone.architecture.lower():
        yield (
            f"{PARITY}: this cache was made with QuickGELU, the published runs with GELU; extract the model as "
            "open_clip:ViT-L-14-gelu/openai (or B-32, B-16) to compare with their scores"
        )
    if request.baselines is None or BEST_LAYER in request.baselines:
        yield from _layer_notes(cache)
    if cache.spec.backbone.architecture.startswith(WITH_TEXT_TOWER) and not any(
        row.head.fitting == ZERO_SHOT for row in request.rows
    ):
        yield "this model has a text tower: --head zero-shot adds its classification by class names, without training"
    held = sorted(cache.inventory.views)
    if held and not request.views:
        yield (
            f"the plain view of each image is taken; the cache also holds {', '.join(held)} (--views all trains on all of them and averages "
            "predictions)"
        )
    column = cache.spec.dataset.get("group_by")
    if column is not None and request.groups is None:
        yield (
            f"train and test were divided by groups of {column}, which a cache does not hold: settings are chosen on held-out samples "
            "whose groups are trained on; --groups FILE (sample_id,group) holds groups out together"
        )


def _layer_notes(cache: Cache) -> Iterator[str]:
    """Yield a note where the cache lacks layers that the baseline best-layer would compare."""
    head = get_head(BEST_LAYER)
    asked = as_layers(head.default_layers).of(cache.spec.backbone.num_layers)
    held = held_layers(cache, head)
    if len(held) == len(asked):
        return
    more = "featcache pull" if cache.partial else "the same `featcache extract` with --layers all"
    if len(held) > 1:
        yield f"the baseline best-layer compares {len(held)} of {len(asked)} layers, those that are here; {more} adds the others"
    else:
        yield f"the baseline best-layer is left out: of {len(asked)} layers, {len(held)} is here; {more} adds the others"


def _published_model(cache: Cache) -> str | None:
    """Return the paper's name of a cache's backbone; None if the paper has it not."""
    names = cache.provenance.get("model_names")
    texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return next((model for name in texts if (model := published_model(name)) is not None), None)
