"""Repositories of Hugging Face transformers: their files, from the Hub at one commit or from a local folder, and their provenance.

Files are fetched one by one and read from where they lie, so that everything comes from one commit and the library itself never asks the Hub.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.extraction.models.names import ModelName
from featcache.store.errors import BackboneError
from featcache.store.files import JsonObject, sha256_file, sha256_hex
from featcache.store.text import reason

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The usual names of weights, in the order in which transformers looks for them; each may be an index of several files."""
_INDEX = ".index.json"
_RELATIVE_IMPORT = re.compile(r"^\s*(?:from\s+\.(\w+)[\w.]*\s+import|import\s+\.(\w+))", re.MULTILINE)


@dataclass(frozen=True)
class Repository:
    """The files of a repository in one folder: a snapshot in the Hub's cache, or a folder of the user's."""

    name: ModelName
    folder: Path
    revision: str | None
    """Commit; None for a local folder."""

    @classmethod
    def open(cls, name: ModelName, folder: Path | None) -> "Repository":
        """Open a local folder, or fetch the configuration of a repository from the Hub.

        Args:
            name: the model.
            folder: local folder with the files of the repository, instead of the Hub.

        Raises:
            BackboneError: the folder holds no configuration.
            Exception: whatever the Hub's client raises.
        """
        folder = folder or name.folder
        if folder is not None:
            if not (folder / CONFIG).is_file():
                state = "does not exist" if not folder.exists() else f"has no {CONFIG}"
                raise BackboneError(
                    f"folder {folder} {state}; give the folder of a model that transformers saved (save_pretrained), or the name "
                    "of a repository, transformers:OWNER/NAME"
                )
            return cls(name, folder, None)
        path = _fetch(name.repository, CONFIG, name.revision)
        repository = cls(name, path.parent, path.parent.name)
        found = [repository.find(file) for file in PROCESSORS]
        if not any(found):
            repository._require_online(PROCESSORS[0])
        return repository

    @property
    def configuration(self) -> dict[str, Any]:
        """The content of config.json.

        Raises:
            BackboneError: it is not a JSON object.
        """
        try:
            content = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BackboneError(f"{self.name.explicit}: {CONFIG} cannot be read ({reason(error)})") from error
        if not isinstance(content, dict):
            raise BackboneError(f"{self.name.explicit}: {CONFIG} holds no object")
        return content

    def find(self, file: str) -> Path | None:
        """Return a file, fetched from the Hub where necessary; None if the repository has no such file, or none can be had offline.

        Raises:
            Exception: whatever the Hub's client raises for another reason.
        """
        path = self.folder / file
        if path.is_file():
            return path
        if self.revision is None:
            return None
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return _fetch(self.name.repository, file, self.revision)
        except EntryNotFoundError:  # that it is not in the local cache is one, too
            return None

    def weights(self) -> list[Path]:
        """Return the files of the weights, fetched from the Hub where necessary.

        Raises:
            BackboneError: the repository has none under the usual names.
            Exception: whatever the Hub's client raises.
        """
        for file in _WEIGHTS:
            if (path := self.find(file)) is not None:
                return [path]
            if (index := self.find(file + _INDEX)) is not None:
                return [self._part(part) for part in _parts(index)]
        self._require_online(_WEIGHTS[0])
        raise BackboneError(
            f"{self.name.explicit} has no weights that can be read ({' or '.join(_WEIGHTS)}, or their index)"
        )

    def _require_online(self, file: str) -> None:
        """Raise what the Hub's client raises for a file that may be missing only because the Hub does not answer.

        Raises:
            LocalEntryNotFoundError: the Hub does not answer, and the file is not in the local cache.
        """
        if self.revision is None:
            return
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            _fetch(self.name.repository, file, self.revision)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return

    def _part(self, file: str) -> Path:
        path = self.find(file)
        if path is None:
            self._require_online(file)
            raise BackboneError(
                f"{self.name.explicit}: {file} is missing, which the index of its weights names"
            )
        return path

    def fetch_code(self, references: Sequence[str]) -> None:
        """Fetch the modules that ``auto_map`` names, and those that they import from the same folder.

        Args:
            references: entries such as ``modeling_intern_vit.InternVisionModel``. Those of other repositories
                (``OWNER/NAME--module.Class``) are left to transformers.
        """
        pending = {f"{reference.rpartition('.')[0]}.py" for reference in references if "--" not in reference}
        seen: set[str] = set()
        while pending:
            file = pending.pop()
            seen.add(file)
            path = self.find(file)
            if path is not None:
                found = _RELATIVE_IMPORT.findall(path.read_text(encoding="utf-8"))
                pending |= {f"{first or second}.py" for first, second in found} - seen

    def source(self, weights: Sequence[Path]) -> JsonObject:
        """Return the provenance of the weights: repository and commit, and the digest of every file; never a path."""
        digests = {path.name: sha256_file(path) for path in weights}
        origin: JsonObject = {"origin": "file"}
        if self.revision is not None:
            origin = {
                "origin": "hub",
                "model": self.name.name,
                "repository": self.name.repository,
                "revision": self.revision,
            }
        if len(digests) == 1:
            ((file, digest),) = digests.items()
            return {**origin, "file": file, "sha256": digest}
        joined = "\n".join(f"{file} {digest}" for file, digest in sorted(digests.items()))
        return {**origin, "files": digests, "sha256": sha256_hex(joined.encode())}


def _fetch(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, file, revision=revision))


def _parts(index: Path) -> Iterator[str]:
    """Yield the names of the files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BackboneError(f"{index.name} cannot be read ({reason(error)})") from error
    for name in names:
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise BackboneError(f"{index.name} names {name!r}, which is no file beside it")
        yield name
