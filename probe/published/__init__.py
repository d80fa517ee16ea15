"""The published scores of arXiv 2601.09322, as data: balanced accuracy on the test split, 9 backbones x 19 datasets.

``scores.csv`` has a row per backbone, dataset and head, in percent; a missing row was not published. ``datasets.csv`` has the
sizes of the paper's datasets; an empty one is not known.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# CLIP with GELU, as the authors loaded it: under open_clip's plain names, and under those that say that GELU is meant.
_AUTHORS_CLIP: Mapping[str, str] = {
    f"open_clip:vit-{size}{ending}/openai": f"clip-vit-{size}"
    for size in ("b-32", "b-16", "l-14")
    for ending in ("", "-gelu")
}
# Under which names a backbone of the paper may have been extracted, besides its own.
_MODELS: Mapping[str, str] = {
    "vit-l-14": "clip-vit-l-14",
    "open_clip:vit-b-32-quickgelu/openai": "clip-vit-b-32",
    "open_clip:vit-b-16-quickgelu/openai": "clip-vit-b-16",
    "open_clip:vit-l-14-quickgelu/openai": "clip-vit-l-14",
    **_AUTHORS_CLIP,
    "timm:vit_small_patch14_dinov2.lvd142m": "dinov2-vit-s-14",
    "timm:vit_base_patch14_dinov2.lvd142m": "dinov2-vit-b-14",
    "timm:vit_large_patch14_dinov2.lvd142m": "dinov2-vit-l-14",
    "timm:vit_small_patch16_224.augreg_in21k_ft_in1k": "augreg-vit-s-16",
    "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k": "augreg-vit-b-16",
    "timm:vit_large_patch16_224.augreg_in21k_ft_in1k": "augreg-vit-l-16",
}

# Preprocessing of the published runs in the words of `preprocessing_parts`, by the beginning of a backbone's name: open_clip's and timm's own,
# but for DINOv2 torchvision's default resize, which is bilinear.
_CENTER = {"size": "224 px", "crop": "center crop"}
_PREPROCESSING: Mapping[str, Mapping[str, str]] = {
    "clip": {
        **_CENTER,
        "interpolation": "bicubic",
        "resized": "of 224 px",
        "normalization": "CLIP's mean and deviation",
    },
    "augreg": {
        **_CENTER,
        "interpolation": "bicubic",
        "resized": "of 248 px",
        "normalization": "mean 0.5 and deviation 0.5",
    },
    "dinov2": {
        **_CENTER,
        "interpolation": "bilinear",
        "resized": "of 256 px",
        "normalization": "ImageNet's mean and deviation",
    },
}


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset of the paper."""

    name: str
    """As in the paper, such as ``FGVC Aircraft``."""
    train_samples: int | None
    test_samples: int | None


def published_dataset(name: str) -> PublishedDataset | None:
    """Return the dataset of the paper that is called `name`, whichever way it is written; None if it has none."""
    return _datasets().get(_plain(name.rpartition(":")[2]))


def published_model(name: str) -> str | None:
    """Return the paper's backbone that `name`, an alias or explicit, stands for; None if it has none."""
    own = _MODELS.get(name.lower(), name.lower())
    return own if any(model == own for model, *_ in _scores()) else None


def has_other_activation(name: str) -> bool:
    """Whether `name` stands for a backbone of the paper with QuickGELU, where the published runs had GELU."""
    return (published_model(name) or "").startswith("clip-") and name.lower() not in _AUTHORS_CLIP


def preprocessing_note(model: str, parts: Mapping[str, str]) -> str:
    """Say whether a cache has the preprocessing of the published runs.

    Args:
        model: the paper's name, as `published_model` gives it.
        parts: preprocessing of the cache, as `preprocessing_parts` words it; empty for results of before it could be chosen, when it
            was always that of the published runs.
    """
    theirs = _PREPROCESSING[model.partition("-")[0]]
    other = [
        f"{parts.get(name, 'unknown')} here, {value} there"
        for name, value in theirs.items()
        if parts and parts.get(name) != value
    ]
    if other:
        return f"{model}: not the preprocessing of the published runs ({'; '.join(other)}); `featcache extract --preprocess paper` has it"
    note = f"{model}: preprocessing as in the published runs"
    if model.startswith("dinov2") and "antialiased" in parts.get("positions", ""):
        note += ", but the position embedding is resized as timm does it, where they had the authors' code"
    return note


def published_score(model: str, dataset: str, head: str, layers: str, tokens: Sequence[str]) -> float | None:
    """Return the published balanced accuracy, a fraction; None where there is none.

    Args:
        model: the paper's name, as `published_model` gives it.
        dataset: the paper's name, as in `PublishedDataset`.
        head: ``linear`` or ``attentive``.
        layers: the layer set.
        tokens: token kinds; all tokens of a layer are ``cls`` and ``patches``.
    """
    kinds = "patches" if set(tokens) == {"cls", "patches"} else "+".join(sorted(tokens, key=_KINDS.index))
    return _scores().get((model, dataset, head, layers, kinds))


_KINDS = ("cls", "ap", "registers", "patches", "grid2", "grid4")


@cache
def _scores() -> dict[tuple[str, str, str, str, str], float]:
    return {
        (row["model"], row["dataset"], row["head"], row["layers"], row["tokens"]): float(
            row["balanced_accuracy_pct"]
        )
        / 100
        for row in _rows("scores.csv")
    }


@cache
def _datasets() -> dict[str, PublishedDataset]:
    found = {}
    for row in _rows("datasets.csv"):
        train, test = (int(row[name]) if row[name] else None for name in ("train_samples", "test_samples"))
        for name in (row["alias"], row["name"]):
            found[_plain(name)] = PublishedDataset(row["name"], train, test)
    return found


def _rows(name: str) -> list[dict[str, str]]:
    text = files(__name__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
