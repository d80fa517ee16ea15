"""The arrays of a foreign source that are imported."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ImportSelection:
    """The requested arrays of a foreign source, and the form in which they are stored."""

    features: Sequence[str] = ()
    """``[SPLIT=]DATASET``, several for a split where a dataset is a layer."""
    labels: Sequence[str] = ()
    ids: Sequence[str] = ()
    tokens: tuple[str, ...] = ("cls",)
    dtype: str | None = None
    """Stored type; that of the source if not given."""
    class_names: Sequence[str] | None = None
