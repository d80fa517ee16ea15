"""Tables: rows of head, layers and tokens that are asked for by one name. No torch."""

from typing import NamedTuple


class TableRow(NamedTuple):
    """One row of a table."""

    head: str
    layers: str | None
    """Layer set or list; None for the head's own."""
    tokens: str | None
    """Token kinds, such as ``cls+ap``; None for the head's own."""

    def __str__(self) -> str:
        """Such as ``linear on last, cls``."""
        return f"{self.head} on {self.layers}, {self.tokens}"


LAYER_SETS = ("last", "mid+last", "quarters", "all")
PAPER = (
    TableRow("linear", "last", "cls"),
    TableRow("attentive", "last", "cls+patches"),
    *(TableRow("linear", layers, "cls+ap") for layers in LAYER_SETS),
    *(TableRow("attentive", layers, "cls+ap") for layers in LAYER_SETS),
)
"""The ten rows of arXiv 2601.09322; its second one is attention over all tokens of the last layer."""

TABLES: dict[str, tuple[TableRow, ...]] = {"paper": PAPER}
