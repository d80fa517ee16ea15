"""A probe straight from a remote: what joins the request of a probe and the caches of teammates."""

from collections.abc import Sequence
from pathlib import Path

from featcache.probing.requests.jobs import needed
from featcache.probing.requests.request import ProbeRequest
from featcache.store.address import parse_address
from featcache.store.progress import Reporter


def borrow_for_probe(address: str, search: Sequence[Path], request: ProbeRequest, reporter: Reporter) -> Path:
    """Fetch what a probe needs of a cache on a remote; returns where it is then.

    Raises:
        Exception: as for `featcache.store.transfer.borrow.borrow`.
    """
    from featcache.store.transfer.borrow import borrow

    return borrow(parse_address(address), search, lambda whole: needed(whole, request), reporter=reporter)
