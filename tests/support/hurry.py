"""Failed requests are tried again at once, as often as ever: tests make them fail by the hundred."""

from collections.abc import Callable
from datetime import timedelta


def hurry(set_attribute: Callable[[object, str, object], None]) -> None:
    """Take the waiting out of the retries; `set_attribute` is `setattr`, or that of pytest's monkeypatch."""
    from featcache.store.transfer import flight
    from featcache.store.transfer.remotes import objects

    set_attribute(flight, "FIRST_WAIT_S", 0.002)
    moment = {"init_backoff": timedelta(seconds=0.001), "max_backoff": timedelta(seconds=0.02), "base": 2}
    set_attribute(objects, "_RETRY", {**objects._RETRY, "backoff": moment})
