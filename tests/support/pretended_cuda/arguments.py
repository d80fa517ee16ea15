"""Arguments of operations: values in tuples, lists and dicts. (torch's general trees take most of the time of a small operation.)"""

from collections.abc import Callable, Iterator
from typing import Any


def map_values(function: Callable[[Any], Any], arguments: Any) -> Any:
    """Return `arguments` with `function` applied to every value in them."""
    if isinstance(arguments, (tuple, list)):
        values = [map_values(function, value) for value in arguments]
        # A named tuple, such as `torch.linalg.eigh` returns, takes its fields one by one.
        return type(arguments)(*values) if hasattr(arguments, "_fields") else type(arguments)(values)
    if isinstance(arguments, dict):
        return {name: map_values(function, value) for name, value in arguments.items()}
    return function(arguments)


def flatten(arguments: Any) -> Iterator[Any]:
    """Yield every value in `arguments`."""
    if isinstance(arguments, (tuple, list)):
        for value in arguments:
            yield from flatten(value)
    elif isinstance(arguments, dict):
        yield from flatten(list(arguments.values()))
    else:
        yield arguments
