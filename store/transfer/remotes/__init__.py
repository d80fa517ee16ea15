"""The kinds of remotes. Their clients are imported when one is opened."""

from featcache.store.address import OBJECT_SCHEMES, WEB_SCHEMES, Address
from featcache.store.transfer.remotes.base import Remote


def open_remote(address: Address) -> Remote:
    """Return the remote at an address; nothing is asked of it yet.

    Raises:
        RequestError: its client is not installed, or lacks something it needs.
    """
    if address.scheme == "file":
        from featcache.store.transfer.remotes.folder import FolderRemote

        return FolderRemote(address)
    if address.scheme in OBJECT_SCHEMES:
        from featcache.store.transfer.remotes.objects import ObjectRemote

        return ObjectRemote(address)
    if address.scheme in WEB_SCHEMES:
        from featcache.store.transfer.remotes.web import WebRemote

        return WebRemote(address)
    if address.scheme == "ssh":
        from featcache.store.transfer.remotes.ssh import SshRemote

        return SshRemote(address)
    if address.host_or_bucket.startswith("buckets/"):
        from featcache.store.transfer.remotes.buckets import BucketRemote

        return BucketRemote(address)
    from featcache.store.transfer.remotes.hub import HubRemote

    return HubRemote(address)
