"""What a column of results is called: head, layers and tokens, and of all other settings those in which namesakes differ.

Namesakes may be of several datasets and backbones. Between these, only what was asked for counts: how many layers there are, or
whether a small train split is divided into folds, follows from the data.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import NamedTuple

from featcache.probing.protocols.files import preset_names
from featcache.probing.protocols.protocol import get_protocol
from featcache.probing.report.groups import Group, options_text, own_num_heads, settings
from featcache.probing.results.rows import ResultRow
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.layers import FINAL

SETUP = "setup"
SHOWN = (
    "tap",
    "views",
    "shots",
    "input",
    "solver",
    "penalty_kind",
    "protocol",
    "folds",
    "options",
    "precision",
)
"""Settings that name a column where two columns differ in nothing else; the digest of all settings does where these agree."""


class Place(NamedTuple):
    """A row of a pivot: a dataset seen through a backbone."""

    dataset: str
    model: str
    cache_key: str


def place_of(group: Group) -> Place:
    """The row of a pivot that a group belongs to."""
    return Place(group.first.dataset, group.first.model, group.first.cache_key)


def column_names(groups: Sequence[Group], told: Sequence[str] = ()) -> dict[int, str]:
    """The name of every group's column, by ``id``: head, layers and tokens, and the settings in which namesakes differ.

    Args:
        groups: which are looked at together.
        told: settings that need no name, such as an axis.
    """
    telling = telling_settings(groups, told)
    return {id(group): " ".join([group.name, *_words(group, telling[id(group)])]) for group in groups}


def telling_settings(groups: Sequence[Group], told: Sequence[str] = ()) -> dict[int, list[str]]:
    """The settings that tell each group from its namesakes, by ``id``; `told` as for `column_names`."""
    telling = {}
    for same in _divide(groups, lambda group: group.name):
        found = {*_telling(same, told, asked)}
        here = _divide(same, place_of)
        for those in here:  # on one cache, nothing follows from the data
            found.update(_telling(those, told, settings))
        names = [name for name in SHOWN if name in found]
        for those in here:
            keys = [settings(group.first, (*told, *names)) for group in those]
            number = Counter(keys)
            for group, key in zip(those, keys, strict=True):
                telling[id(group)] = [*names, SETUP] if number[key] > 1 else names
    return telling


def asked(row: ResultRow, names: Sequence[str]) -> tuple[object, ...]:
    """The values of a row's settings as they were asked for; what follows from dataset and backbone has the same everywhere."""
    return tuple(_asked(row, name) for name in names)


def _asked(row: ResultRow, name: str) -> object:
    if name == "tap":
        # A backbone of one block has no block among its layers.
        return DEFAULT_TAP if row.tap == FINAL else row.tap
    if name == "folds":
        return None if _may_divide(row.protocol) else row.folds
    if name == "options" and row.options.get("num_heads") == own_num_heads(row):
        return options_text(row, but=("num_layers", "num_heads"))
    (value,) = settings(row, (name,))
    return value


@cache
def _may_divide(protocol: str) -> bool:
    """Whether small train splits may be divided into folds by a protocol: of one's own, that cannot be told from a row."""
    return protocol not in preset_names() or get_protocol(protocol).folds_below is not None


def _telling(
    groups: Sequence[Group],
    told: Sequence[str],
    values: Callable[[ResultRow, Sequence[str]], tuple[object, ...]],
) -> list[str]:
    """The settings that tell groups apart, and no more: one that follows from others does not count."""
    telling: list[str] = []
    number = len({values(group.first, told) for group in groups})
    for setting in SHOWN:
        found = len({values(group.first, (*told, *telling, setting)) for group in groups})
        if found > number:
            telling.append(setting)
            number = found
    return telling


def _words(group: Group, names: Sequence[str]) -> list[str]:
    units = {"shots": " shots", "folds": " folds"}
    # The folds themselves, whatever they follow from.
    values = {name: (settings if name == "folds" else asked)(group.first, (name,))[0] for name in names}
    return [f"{value}{units.get(name, '')}" for name, value in values.items() if value is not None]


def _divide(groups: Sequence[Group], by: Callable[[Group], Hashable]) -> list[list[Group]]:
    parts: dict[Hashable, list[Group]] = {}
    for group in groups:
        parts.setdefault(by(group), []).append(group)
    return list(parts.values())
