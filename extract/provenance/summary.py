"""Describe the dataset of a run in one line: samples, classes, splits, files passed over."""

from collections.abc import Sequence

from featcache.extraction.sources.base import Source
from featcache.extraction.sources.image_formats import passed_over_text
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
        text += f"; {passed_over}"
    return printable(text)


def _targets_text(targets: Targets) -> str:
    if not targets.labeled:
        return "no labels"
    count, what = len(targets.names), "class"
    if targets.type == REGRESSION:
        what = "target"
    elif targets.type == MULTI_LABEL:
        what = "label"
    names = ", ".join(targets.names[:_SHOWN]) + (", ..." if count > _SHOWN else "")
    plural = what if count == 1 else f"{what}es" if what == "class" else f"{what}s"
    several = ", several an image" if targets.type == MULTI_LABEL else ""
    return f"{count:,} {plural} ({names}){several}"
