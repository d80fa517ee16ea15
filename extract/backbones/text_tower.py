"""Text towers of open_clip models: embeddings of class names, for classification without training (CLIP, arXiv 2103.00020).

Shapes: C classes, P templates, E channels of an embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.timm_model import TimmModel
from torch import Tensor

from featcache.extraction.backbones.checkpoint import OPEN_CLIP_ORDER, read_checkpoint
from featcache.extraction.backbones.hub import load_failure
from featcache.extraction.backbones.open_clip_vit import (
    architecture_and_tag,
    download_weights,
    repository_of,
    without_warnings,
)
from featcache.extraction.models.names import ModelName
from featcache.store.errors import BackboneError, RequestError
from featcache.store.hub import offline_if_unreachable

CLASSES_AT_ONCE = 16
_POOLED = {"tok": "cls", "token": "cls", "avg": "ap"}


@dataclass(frozen=True)
class TextTower:
    """The text tower of a model, in eval mode, with its tokenizer."""

    model: Any
    tokenizer: Callable[[Sequence[str]], Tensor]
    pooled: str | None
    """Kind of the token that the image tower pools: ``cls`` or ``ap``; None where it pools otherwise."""

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine of an image and a text."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float:
        """Added to every logit, as in SigLIP; 0 for most models."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach())

    def class_embeddings(
        self,
        prompts: Sequence[Sequence[str]],
        device: torch.device | str = "cpu",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Return the embedding of every class: the mean of its prompts' embeddings, each and the mean of length 1.

        Args:
            prompts: P texts for each of C classes.
            device: where to compute.
            on_progress: called with the classes done and to be done.

        Returns:
            ``[C, E]``, float32, on the CPU.
        """
        model, found = self.model.to(device), []
        for start in range(0, len(prompts), CLASSES_AT_ONCE):
            part = prompts[start : start + CLASSES_AT_ONCE]
            tokens = self.tokenizer([text for texts in part for text in texts]).to(device)
            with torch.inference_mode():
                texts = model.encode_text(tokens, normalize=True).float()
            means = texts.view(len(part), -1, texts.shape[-1]).mean(1)
            found.append((means / means.norm(dim=1, keepdim=True)).cpu())
            if on_progress is not None:
                on_progress(start + len(part), len(prompts))
        return torch.cat(found).clone()


def load_text_tower(name: ModelName, weights: Path | None = None, key: str | None = None) -> TextTower:
    """Load the text tower of an open_clip model.

    Args:
        name: the resolved name, of family ``open_clip``.
        weights: local weights of the whole model; without them the tag's come from the hub.
        key: name of one of several sets of weights in that file.

    Raises:
        RequestError: the model has no text tower.
        BackboneError: the weights cannot be had, do not fit, or hold the image tower alone.
    """
    if name.family != "open_clip":
        raise RequestError(
            f"{name.explicit} has no text tower: zero-shot is for models of open_clip, such as vit-l-14"
        )
    architecture, tag = architecture_and_tag(name)
    try:
        path = weights or download_weights(architecture, tag)
        state = {
            name.removeprefix("module."): value
            for name, value in read_checkpoint(path, OPEN_CLIP_ORDER, key).state.items()
        }
        with without_warnings():  # that its weights are random
            model: Any = open_clip.create_model(architecture, pretrained_text=False)
        own = {
            name: value
            for name, value in convert_state_dict(model, state).items()
            if not name.startswith("visual.")
        }
        wanted = {name for name in model.state_dict() if not name.startswith("visual.")}
        if not wanted & own.keys():
            raise BackboneError(
                f"{path} holds the image tower of {name.explicit} alone; zero-shot needs weights of the whole model, with --weights"
            )
        _load_all_but_image_tower(model, own)
        with offline_if_unreachable():  # some tokenizers are files of the hub
            tokenizer = open_clip.get_tokenizer(architecture)
    except (BackboneError, RequestError):
        raise
    except Exception as error:  # open_clip, torch and the hub client raise many kinds
        raise load_failure(name, weights, error, repository_of(architecture, tag)) from error
    tower = model.visual
    pool = tower.trunk.global_pool if isinstance(tower, TimmModel) else getattr(tower, "pool_type", None)
    return TextTower(model.eval(), tokenizer, _POOLED.get(str(pool)))


def _load_all_but_image_tower(model: Any, state: dict[str, Tensor]) -> None:
    """Load the weights of everything besides the image tower, whose position embedding may be of another size.

    Raises:
        RuntimeError: weights are missing or superfluous.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Masks and position numbers follow from the architecture, and old files store them or not.
    buffers = ("attn_mask", "position_ids")
    missing = [name for name in missing if not name.startswith("visual.") and not name.endswith(buffers)]
    unexpected = [name for name in unexpected if not name.endswith(buffers)]
    if missing or unexpected:
        lacks = (
            f"lacks {', '.join(missing[:3])}"
            if missing
            else f"has {', '.join(unexpected[:3])}, which the model lacks"
        )
        raise RuntimeError(lacks)
