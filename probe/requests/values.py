"""Values of a request as its user gives them, in Python or as text of the command line, turned into what the probe works with.

Each function takes a converted value too, so that a request can be copied with changes. No torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache.probing.heads import HeadInfo, get_head
from featcache.probing.inputs.selection import parse_kinds
from featcache.probing.protocols.protocol import Protocol, check_protocol, get_protocol
from featcache.store.errors import RequestError
from featcache.store.parameters import whole_numbers
from featcache.store.text import parse_names

NONE = "none"
"""Asks for no baseline at all."""


def as_heads(given: str | HeadInfo | Sequence[str | HeadInfo]) -> tuple[HeadInfo, ...]:
    """Find heads by name, given one by one or as a list with commas.

    Raises:
        UnknownNameError: there is no such head.
        RequestError: the head cannot be asked for by name.
    """
    listed = [given] if isinstance(given, str | HeadInfo) else given
    heads = [
        head
        for one in listed
        for head in ([one] if isinstance(one, HeadInfo) else map(get_head, parse_names(one)))
    ]
    for head in heads:
        if not head.listed:
            raise RequestError(f"head {head.name!r} is what auto makes of several heads; ask for auto")
    return tuple(heads)


def as_protocol(given: str | Protocol) -> Protocol:
    """Read the protocol of this name or file, or check one that was made in Python.

    Raises:
        UnknownNameError, RequestError: as for `get_protocol` and `check_protocol`.
    """
    return get_protocol(given) if isinstance(given, str) else check_protocol(given)


def as_token_kinds(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Read token kinds such as ``cls+ap``; None stays None.

    Raises:
        UnknownNameError: there is no such kind.
        RequestError: none is named, or one more than once.
    """
    return None if given is None else parse_kinds(given if isinstance(given, str) else "+".join(given))


def as_baselines(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Read names of baselines; ``none`` stands for an empty list, and None, which leaves the choice open, stays None."""
    if given is None:
        return None
    names = parse_names(given) if isinstance(given, str) else tuple(given)
    return () if names == (NONE,) else names


def as_seeds(given: str | Sequence[int]) -> tuple[int, ...]:
    """Convert seeds; see `whole_numbers`."""
    return whole_numbers("seeds", given)


def as_shots(given: str | Sequence[int]) -> tuple[int, ...]:
    """Convert numbers of samples of each class; see `whole_numbers`."""
    return whole_numbers("shots", given)


def as_head_options(given: Mapping[str, int] | Sequence[str] | None) -> Mapping[str, int]:
    """Read options of heads such as ``hidden=512``.

    Raises:
        RequestError: a text has another form.
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    return dict(_head_option(text) for text in given)


def _head_option(text: str) -> tuple[str, int]:
    name, sign, number = text.partition("=")
    if not sign or not number.strip().isdecimal():
        raise RequestError(f"an option of a head is such as hidden=512, not {text!r}")
    return name.strip().replace("-", "_"), int(number)


def as_groups(given: str | Path | Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Read the group of every sample from a CSV file; see `featcache.probing.inputs.grouped.read_groups`."""
    if given is None or isinstance(given, Mapping):
        return given
    from featcache.probing.inputs.grouped import read_groups

    return read_groups(Path(given))
