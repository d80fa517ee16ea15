"""Failed requests are tried again at once, as often as ever: tests make them fail by the hundred."""

from collections.abc import Callable
from datetime import timedelta


def no_backoff(set_attribute: Callable[[object, str, object], None]) -> None:
    """Take the waiting out of the retries; `set_attribute` is `setattr`, or that of pytest's monkeypatch."""
    from featcache.store.network import concurrency
    from featcache.store.transfer.remotes import objects

    set_attribute(concurrency, "FIRST_WAIT_S", 0.002)
    moment = {"init_backoff": timedelta(seconds=0.001), "max_backoff": timedelta(seconds=0.02), "base": 2}
    set_attribute(objects, "_RETRY", {**objects._RETRY, "backoff": moment})


def short_timeouts(set_attribute: Callable[[object, str, object], None]) -> None:
    """Take silence for an error after a moment: what is bounded stays bounded, in another unit."""
    from featcache.store.network import concurrency, http_client, timeouts
    from featcache.store.transfer.remotes import base, objects, ssh

    for module in (timeouts, http_client, base, objects):
        set_attribute(module, "SILENCE_S", 0.4)
    for module in (http_client, objects, ssh):
        set_attribute(module, "CONNECT_S", 0.4)
    set_attribute(ssh, "CALL_S", 0.4)
    set_attribute(concurrency, "GIVE_UP_S", 0.6)
    set_attribute(
        objects, "_OPTIONS", {**objects._OPTIONS, "connect_timeout": "400ms", "read_timeout": "400ms"}
    )
    set_attribute(objects, "_RETRY", {**objects._RETRY, "max_retries": 0})
