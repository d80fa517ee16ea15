"""What of a foreign source is imported."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """What of a foreign source is imported, as asked for."""

    features: Sequence[str] = ()
    """``[SPLIT=]DATASET``, several for a split where a dataset is a layer."""
    labels: Sequence[str] = ()
    ids: Sequence[str] = ()
    tokens: tuple[str, ...] = ("cls",)
    dtype: str | None = None
    """Stored type; that of the source if not given."""
    class_names: Sequence[str] | None = None
