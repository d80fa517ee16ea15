"""The Hugging Face Hub: where downloaded weights lie, which commit they are of, and what to do when they cannot be had."""

from collections.abc import Sequence
from pathlib import Path

from featcache.extraction.models.names import ModelName
from featcache.store.errors import BackboneError
from featcache.store.files import JsonObject, sha256_file
from featcache.store.hub import hub_problem
from featcache.store.text import reason


def cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """Return the first of some files of a repository (``owner/name`` or ``owner/name@revision``) that is in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    repo_id, _, revision = repository.partition("@")
    for name in names:
        cached = try_to_load_from_cache(repo_id, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    return None


def hub_source(name: ModelName, repository: str, path: Path | None) -> JsonObject:
    """Return the provenance of a downloaded file: repository, commit, file and digest.

    Args:
        name: the model.
        repository: where it was downloaded from.
        path: where it lies, in the Hub's cache (``.../snapshots/<commit>/<file>``) or elsewhere; None if that is not known.
    """
    source: JsonObject = {"origin": "hub", "model": name.name, "repository": repository.partition("@")[0]}
    if path is None:
        return source
    parts = path.parts
    if "snapshots" in parts[:-2]:
        at = len(parts) - 1 - parts[::-1].index("snapshots")
        source |= {"revision": parts[at + 1], "file": "/".join(parts[at + 2 :])}
    else:
        source |= {"file": path.name}
    return source | {"sha256": sha256_file(path)}


def load_failure(
    name: ModelName, weights: Path | None, error: Exception, repository: str | None = None
) -> BackboneError:
    """Turn what a model library raised while loading into one line with the next step.

    Args:
        name: the model.
        weights: the local file, if that was to be loaded.
        error: what was raised.
        repository: where the Hub's weights are, if known.
    """
    if weights is not None:
        return BackboneError(f"weights file {weights} does not fit {name.explicit} ({reason(error)})")
    cause, remedy = hub_problem(error, repository or "its repository")
    return BackboneError(
        f"pretrained weights of {name.explicit} could not be loaded ({cause}); {remedy}, or give local weights with "
        "--weights FILE"
    )
