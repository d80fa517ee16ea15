"""Lines that list the arrays of a split; views with the same arrays as the plain one are named once."""

from collections.abc import Iterator, Mapping
from typing import Any

from featcache.store.token_groups import split_view
from featcache.store.views import View
from featcache.terminal.console import name_range

INDENT = " " * 10


def array_lines(arrays: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for every array with layers, the views last.

    Args:
        arrays: by name, as `Inventory.to_dict` has them.
    """
    by_view: dict[str, dict[str, Mapping[str, Any]]] = {"": {}}
    for name, info in arrays.items():
        if info["layers"]:
            view, plain_name = split_view(name)
            by_view.setdefault(view, {})[plain_name] = info
    alike = [view for view, own in by_view.items() if view and own == by_view[""]]
    for view, own in by_view.items():
        if view in alike:
            continue
        for name, info in own.items():
            layers, tokens = name_range(info["layers"]), name_range(info["tokens"]).replace(", ", "+")
            full = f"{view}-{name}" if view else name
            yield f"{INDENT}{full}: {info['dtype']} {info['shape']}, layers {layers}, tokens {tokens}"
    if alike:
        yield f"{INDENT}the same arrays in the views {', '.join(alike)}"


def view_lines(views: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for every view: its name and how it is made.

    Args:
        views: parameters by name, as `Inventory.to_dict` has them.
    """
    for index, (name, parameters) in enumerate(views.items()):
        yield f"{'views' if not index else '':<10}{name}: {View(name, parameters).text}"
