"""An iterator that works one item ahead, on a thread of its own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; a thread gets each next one while the caller works."""
    missing = object()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, missing)
        while True:
            item = following.result()
            if item is missing:
                return
            following = pool.submit(next, items, missing)
            yield item  # type: ignore[misc]
