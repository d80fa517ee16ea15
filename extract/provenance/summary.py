"""Describe the input of a run in one line (samples, classes, splits, files passed over), and the preprocessing in another."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from featcache.extraction.sources.base import Source
from featcache.extraction.sources.decode import passed_over_text
from featcache.store.targets import MULTI_LABEL, REGRESSION, Targets
from featcache.store.text import printable

_SHOWN = 5


def dataset_summary(source: Source, splits: Sequence[str]) -> str:
    """Describe the samples of the chosen splits: ``2,000 images, 3 classes (a, b, c), split 75/25 by featcache: ...``."""
    counts = {name: len(source.splits[name]) for name in splits}
    sizes = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    identity = source.identity
    parts = [f"{sum(counts.values()):,} images", _targets_text(source.targets)]
    if identity.get("split_seed") is not None:
        group = identity.get("group_by")
        by = f" by groups of {group}" if group else ""
        parts.append(f"split 75/25 by featcache{by} ({sizes})")
    else:
        parts.append(f"the dataset's own split ({sizes})")
    text = ", ".join(parts)
    limit = identity.get("limit")
    if isinstance(limit, list) and limit:
        text += f"; limited to {limit[0]:,} a split"
    passed_over = passed_over_text(source.passed_over)
    if passed_over:
        text += f"; passed over: {passed_over}"
    return printable(text)


def _targets_text(targets: Targets) -> str:
    count, what = len(targets.names), "class"
    if targets.type == REGRESSION:
        what = "target"
    elif targets.type == MULTI_LABEL:
        what = "label"
    names = ", ".join(targets.names[:_SHOWN]) + (", ..." if count > _SHOWN else "")
    plural = what if count == 1 else f"{what}es" if what == "class" else f"{what}s"
    several = ", several an image" if targets.type == MULTI_LABEL else ""
    return f"{count:,} {plural} ({names}){several}"


def preprocessing_text(preprocessing: Mapping[str, Any], size: int) -> str | None:
    """Describe the preprocessing of a backbone's spec; None if its form is unknown."""
    library, filter_ = preprocessing.get("library"), preprocessing.get("interpolation")
    if library == "timm":
        if preprocessing.get("crop_mode") != "center":
            return f"images are resized to {size} x {size} ({filter_}, {preprocessing.get('crop_mode')})"
        return _cropped(math.floor(size / float(preprocessing["crop_pct"])), size, filter_)
    if library == "open_clip":
        if preprocessing.get("resize_mode") != "shortest":
            return f"images are resized to {size} x {size} ({filter_}, {preprocessing.get('resize_mode')})"
        return _cropped(size, size, filter_)
    if library == "transformers" and "resize" in preprocessing:
        resize = preprocessing["resize"]
        if isinstance(resize, int) and preprocessing.get("crop"):
            return _cropped(resize, size, filter_)
        if isinstance(resize, list) and len(resize) == 2:
            crop = f", cropped to {size} x {size}" if preprocessing.get("crop") else ""
            return f"images are resized to {resize[0]} x {resize[1]} ({filter_}){crop}"
    return None


def _cropped(resized: int, size: int, filter_: object) -> str:
    return (
        f"images are resized to {resized} px on the shorter side ({filter_}) and cropped to {size} x {size}"
    )
