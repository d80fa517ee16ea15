"""Solutions and the state of a minimisation on disk, so that a long path of penalties resumes where it was interrupted.

Every file is replaced in one step and begins with a digest of its content: a file that is damaged, or of another problem, counts as absent.

Shapes: P penalties, C classes, R dimensions.
"""

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from featcache.store.files import canonical_json, sha256_hex, write_atomic

# Seconds between two saves of a minimisation that is under way; what comes after the last save is done again.
SAVE_SECONDS = 60.0
_DIGEST_BYTES = 64
_SUFFIX = ".path"

Tensors = dict[str, Tensor]


@dataclass
class PathJournal:
    """The folder of one run's solutions; kept until the run has a result."""

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device that tensors are read to."""
    save_seconds: float = SAVE_SECONDS
    _saved_at: float = field(default_factory=time.monotonic)

    def read(self, key: Mapping[str, object]) -> Tensors | None:
        """Return the tensors that were written under a key; None if there are none, or if the file is damaged."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        digest, tensors = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(tensors).hexdigest().encode() != digest:
            return None
        try:
            return {name: tensor.to(self.device) for name, tensor in load(tensors).items()}
        except SafetensorError:
            return None

    def write(self, key: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
        """Write tensors under a key, in place of those before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_atomic(self._path(key), hashlib.sha256(content).hexdigest().encode() + content)
        self._saved_at = time.monotonic()

    @property
    def count(self) -> int:
        """Number of files."""
        return len(list(self.folder.glob(f"*{_SUFFIX}")))

    @property
    def is_due(self) -> bool:
        """Whether the last save is long enough ago for another one."""
        return time.monotonic() - self._saved_at >= self.save_seconds

    def drop(self, key: Mapping[str, object]) -> None:
        """Remove what was written under a key."""
        self._path(key).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, since the run has a result."""
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self.folder.parent.rmdir()
        except OSError:  # other runs keep their files there
            return

    def _path(self, key: Mapping[str, object]) -> Path:
        return self.folder / f"{sha256_hex(canonical_json(key))[:24]}{_SUFFIX}"
