"""The embedder of class names that a probe needs, if it needs one: only zero-shot imports the libraries of backbones."""

from typing import TYPE_CHECKING

from featcache.probing.heads.info import ZERO_SHOT
from featcache.probing.requests.request import ProbeRequest
from featcache.store.progress import Reporter

if TYPE_CHECKING:
    import torch

    from featcache.probing.zero_shot import EmbedClasses


def embedder_for(request: ProbeRequest, device: "torch.device", reporter: Reporter) -> "EmbedClasses | None":
    """Return the embedder for a request with zero-shot among its heads; None for others."""
    if all(row.head.fitting != ZERO_SHOT for row in request.rows):
        return None
    from featcache.zero_shot.class_names import embedder

    return embedder(request.text_weights, device, reporter)
