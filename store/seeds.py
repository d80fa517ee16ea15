"""The range of seeds that all commands, functions and estimators accept, and that all files can hold."""

import operator

from featcache.store.errors import RequestError
from featcache.store.text import shortened

MAX_SEED = 2**63 - 1
"""Largest seed that all generators and JSON readers accept; results with a larger one could not be read back."""


def check_seed(seed: object, what: str = "a seed") -> int:
    """Return `seed` as an int.

    Args:
        seed: an integer of Python or numpy.
        what: name of the seed in the error, such as ``--split-seed``.

    Raises:
        RequestError: the seed is not an integer from 0 to `MAX_SEED`.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise RequestError(f"{what} must be a whole number from 0 to {MAX_SEED}, got {shortened(seed)}")
    return number
