"""Seeds: the one range that every command, function and estimator takes, and that every file can hold."""

import operator

from featcache.store.errors import RequestError
from featcache.store.text import shortened

MAX_SEED = 2**63 - 1
"""Generators and JSON readers agree on this range; a larger seed made results that could not be read back."""


def check_seed(seed: object, what: str = "a seed") -> int:
    """Return `seed` as an int.

    Args:
        seed: Python's or numpy's.
        what: its name in the error, such as ``--split-seed``.

    Raises:
        RequestError: it is no whole number from 0 to `MAX_SEED`.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise RequestError(f"{what} must be a whole number from 0 to {MAX_SEED}, got {shortened(seed)}")
    return number
