"""The manifest of a cache that other processes may complete or add to while this one writes."""

import os
from pathlib import Path

from featcache.store.manifest import MANIFEST_FILE, Manifest


class ManifestFile:
    """Reads the manifest again only when the file has changed: writers ask after every block."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state: tuple[int, ...] = ()
        self._manifest: Manifest | None = None

    def read(self) -> Manifest | None:
        """Return the manifest as it is now; None if there is none.

        Raises:
            CacheError: it is damaged.
        """
        try:
            status = os.stat(self._directory / MANIFEST_FILE)
            state = (status.st_ino, status.st_mtime_ns, status.st_size)
            if state != self._state:
                self._manifest = Manifest.read(self._directory)
                self._state = state
        except FileNotFoundError:
            self._state, self._manifest = (), None
        return self._manifest
