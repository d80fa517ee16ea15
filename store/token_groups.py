"""Grouping of the tokens of a layer into arrays: an array holds one group of tokens at one tap.

Groups are arrays of their own, so that one can be added to a cache without rewriting another.
"""

from collections.abc import Sequence

from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.layers import TOKEN_KINDS

POOLED = "pooled"
PATCHES = "patches"
REGISTERS = "registers"
GRIDS = {"grid2": 2, "grid4": 4}
"""Averages over the patches of a grid of regions, by the grid's side."""
EMBEDDING = "embedding"
"""Array of a pooled output that no product of a cached token gives."""
STATISTICS = ("sd", "max", "min", "gem")
"""Statistics over the patches, per channel, each a group of one token: standard deviation (over all patches, not N - 1), maximum, minimum,
generalized mean with exponent 3 (Radenovic et al. 2018)."""
GROUPS = (POOLED, REGISTERS, PATCHES, *GRIDS, *STATISTICS)
_PREFIX = {REGISTERS: "register", PATCHES: "patch"}


def array_name(tap: str, group: str = POOLED, view: str = "") -> str:
    """Name of the array that holds `group` at `tap`: ``norm2``, ``norm2_patches``, ``final_grid2``; of a view ``flip-norm2``."""
    return of_view(tap if group == POOLED else f"{tap}_{group}", view)


def parse_array_name(array: str) -> tuple[str, str]:
    """Return the tap and the group of an array, whatever its view."""
    tap, _, group = split_view(array)[1].partition("_")
    return tap, group or POOLED


def of_view(array: str, view: str) -> str:
    """Return the name that an array has in a view; an empty `view` is the plain one."""
    return f"{view}-{array}" if view else array


def split_view(array: str) -> tuple[str, str]:
    """Return the view of an array (empty for the plain one) and the array's name without it; the reverse of `of_view`."""
    view, dash, name = array.partition("-")
    return (view, name) if dash else ("", array)


def token_names(group: str, count: int) -> tuple[str, ...]:
    """Return the names of the `count` tokens of a group other than the pooled one: ``patch0``, ``register0``, ``grid2_0``, ``max``."""
    if group in STATISTICS:
        return (group,) * count
    return tuple(f"{_PREFIX.get(group, f'{group}_')}{index}" for index in range(count))


def parse_groups(text: str) -> tuple[str, ...]:
    """Return the groups to cache that a list such as ``cls,ap,registers,grid2`` asks for, the pooled one always first.

    Raises:
        UnknownNameError: a kind of token does not exist.
        RequestError: none is named.
    """
    names = [name.strip() for name in text.replace("+", ",").split(",") if name.strip()]
    for name in names:
        if name not in (*TOKEN_KINDS, *GROUPS[1:]):
            raise UnknownNameError("token kind", name, (*TOKEN_KINDS, *GROUPS[1:]))
    if not names:
        raise RequestError(f"no token kind is named in {text!r}")
    return sort_groups({POOLED, *names} - {*TOKEN_KINDS})


def sort_groups(groups: "set[str] | Sequence[str]") -> tuple[str, ...]:
    """Return the groups in the order of `GROUPS`, each once."""
    return tuple(group for group in GROUPS if group in groups)
