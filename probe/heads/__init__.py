"""The heads that a probe can train. A new head is one small module here and one entry in `featcache.probing.heads.registry`.

No torch at import, so that the command line can list heads at once: a head's module is loaded when it is built.
"""

from featcache.probing.heads.info import HeadInfo
from featcache.probing.heads.registry import HEADS, get_head

__all__ = ["HEADS", "HeadInfo", "get_head"]
