"""Preprocessing of a backbone's spec in words: a sentence for a run, and a short label for tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.store.spec import STATED, BackboneSpec, is_upright

_STATISTICS = {
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "ImageNet",
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)): "CLIP",
}
"""Names of well-known means and deviations."""
_AS_STORED, _POSITIONS = "as stored", "positions"
_SQUASHED, _PADDED = ("squash",), ("border", "longest")


def preprocessing_text(preprocessing: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """Describe the preprocessing of a backbone's spec in a sentence; None if its form is unknown.

    Args:
        preprocessing: as the spec states it.
        size: height and width of the input, pixels.
    """
    geometry = _geometry(preprocessing, size)
    if geometry is None:
        return None
    resized, mode = geometry
    filter_, wanted = preprocessing.get("interpolation"), f"{size[0]} x {size[1]}"
    if mode in _SQUASHED:
        text = f"images are resized to {resized[0]} x {resized[1]} ({filter_}, whatever their shape)"
        text += "" if resized == size else f" and cropped to {wanted}"
    elif mode in _PADDED:
        text = (
            f"images are resized to fit into {resized[0]} x {resized[1]} ({filter_}) and padded to {wanted}"
        )
    elif resized[0] == resized[1]:
        text = (
            f"images are resized to {resized[0]} px on the shorter side ({filter_}) and cropped to {wanted}"
        )
    else:
        text = f"images are resized to cover {resized[0]} x {resized[1]} ({filter_}) and cropped to {wanted}"
    turned = "; they are turned upright by their EXIF orientation first" if is_upright(preprocessing) else ""
    return text + _statistics(preprocessing) + _positions(preprocessing) + turned


def preprocessing_parts(spec: BackboneSpec) -> dict[str, str]:
    """Return the preprocessing in parts, each in a few words, such as ``bicubic``; compare them with `distinguish`."""
    stated = spec.preprocessing
    geometry = _geometry(stated, spec.image_size)
    if geometry is None:
        return {name: f"{name} {value}" for name, value in stated.items()}
    resized, mode = geometry
    crop = "squashed" if mode in _SQUASHED else "padded" if mode in _PADDED else "center crop"
    positions = stated.get("position_embedding", _AS_STORED)
    return {
        "size": f"{_side(spec.image_size)} px",
        "interpolation": str(stated.get("interpolation")),
        "crop": crop,
        "resized": f"of {_side(resized)} px",
        "normalization": _statistics(stated).removeprefix(", with "),
        _POSITIONS: f"position embedding {positions}",
        "orientation": "upright" if spec.upright else "as stored",
        "resize": f"resized by {spec.resize}",
    }


def preprocessing_label(spec: BackboneSpec) -> str:
    """Return the preprocessing in a few words for a table, such as ``224 px of 256 px bicubic``; empty if its form is unknown."""
    if _geometry(spec.preprocessing, spec.image_size) is None:
        return ""
    parts = preprocessing_parts(spec)
    words = [parts["size"]]
    words += [parts["resized"]] if parts["resized"] != f"of {parts['size']}" else []
    words += [parts["interpolation"]]
    words += [parts["crop"]] if parts["crop"] != "center crop" else []
    words += [parts["orientation"]] if spec.upright else []
    return " ".join(words)


def distinguish(several: Sequence[Mapping[str, str]]) -> list[str]:
    """Return, for each of several preprocessings in parts, the words for what differs among them; all empty if nothing does."""
    names = dict.fromkeys(name for parts in several for name in parts)
    differing = [name for name in names if len({parts.get(name, "") for parts in several}) > 1]
    # How positions are resized follows from the size in most cases, and says little.
    telling = [name for name in differing if name != _POSITIONS] or differing
    return [", ".join(filter(None, (parts.get(name, "") for name in telling))) for parts in several]


def _geometry(preprocessing: Mapping[str, Any], size: tuple[int, int]) -> tuple[tuple[int, int], str] | None:
    """Return height and width of the resized image, and the library's name for the way to crop; None if the form is unknown."""
    library = preprocessing.get("library")
    if library not in STATED or "processor" in preprocessing:
        return None
    part, mode = (
        preprocessing.get("crop_pct", 1.0),
        preprocessing.get("resize_mode" if library == "open_clip" else "crop_mode"),
    )
    if not isinstance(part, int | float) or not 0 < part <= 1:
        return None
    return (math.floor(size[0] / part), math.floor(size[1] / part)), str(mode)


def _side(size: tuple[int, int]) -> str:
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _statistics(preprocessing: Mapping[str, Any]) -> str:
    mean, std = (preprocessing.get(name) for name in ("mean", "std"))
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        return ""
    name = _STATISTICS.get((tuple(mean), tuple(std)))
    if name is not None:
        return f", with {name}'s mean and deviation"
    return f", with mean {_numbers(mean)} and deviation {_numbers(std)}"


def _numbers(values: list[Any] | tuple[Any, ...]) -> str:
    texts = [f"{value:g}" if isinstance(value, int | float) else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _positions(preprocessing: Mapping[str, Any]) -> str:
    method = preprocessing.get("position_embedding", _AS_STORED)
    return "" if method == _AS_STORED else f"; position embedding resized ({method})"
