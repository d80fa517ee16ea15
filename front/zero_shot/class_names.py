"""Embed the class names of a cache with the text tower that belongs to its backbone."""

from collections.abc import Sequence
from pathlib import Path

import torch

from featcache.extraction.backbones import load_backbone
from featcache.extraction.backbones.text_tower import load_text_tower
from featcache.extraction.models.names import resolve_model
from featcache.extraction.models.preprocessing import Preprocessing
from featcache.probing.zero_shot import ClassEmbeddings, EmbedClasses, class_prompts
from featcache.recompute.inputs import recorded_model, recorded_weight_set
from featcache.store.errors import RequestError
from featcache.store.progress import Reporter
from featcache.store.reading.reader import Cache
from featcache.store.token_groups import EMBEDDING

SHOWN = 3


def embedder(weights: Path | None, device: torch.device, reporter: Reporter) -> EmbedClasses:
    """Return the function that embeds the class names of a cache.

    Args:
        weights: local weights of the whole model; by default those of the hub that the cache's provenance names.
        device: where to compute.
        reporter: receives messages and progress.
    """

    def embed(cache: Cache, templates: Sequence[str]) -> ClassEmbeddings:
        name = resolve_model(recorded_model(cache))
        key = None if weights is None else recorded_weight_set(cache)
        reporter.message(f"loading the text tower of {name.explicit}")
        _check_image_tower(cache, weights)
        tower = load_text_tower(name, weights, key)
        if tower.pooled is None and EMBEDDING not in cache["test"].inventory.arrays:
            raise RequestError(
                f"{cache.directory}: the pooling of {name.explicit} is not cached, so no image embeddings are there"
            )
        prompts = class_prompts(cache.inventory.class_names, templates)
        listed = "; ".join(texts[0] for texts in prompts[:SHOWN])
        more = f"; ... ({len(prompts):,} classes, {len(templates)} templates)"
        reporter.message(f"zero-shot prompts: {listed}{more}")
        with reporter.progress("class names", "classes") as update:
            found = tower.class_embeddings(prompts, device, update)
        return ClassEmbeddings(found, tower.logit_scale, tower.logit_bias, tower.pooled or "cls")

    return embed


def _check_image_tower(cache: Cache, weights: Path | None) -> None:
    """Refuse weights whose image tower is not the one that the cache was made with: texts and images would not belong together."""
    spec, name = cache.spec.backbone, resolve_model(recorded_model(cache))
    preprocessing = Preprocessing.of_spec(spec, str(cache.directory))
    key = None if weights is None else recorded_weight_set(cache)
    loaded = load_backbone(name, weights, key, preprocessing).spec
    if loaded.weights_digest != spec.weights_digest:
        where = "the hub's weights" if weights is None else str(weights)
        raise RequestError(
            f"{where} of {name.explicit}: the image tower is not the one that {cache.directory} was made with; give the file of the "
            "extraction with --weights"
        )
