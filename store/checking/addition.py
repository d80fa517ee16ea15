"""An addition to a complete cache that is not finished: its files belong there, although the manifest knows none."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from featcache.store.checking.damage import Damage, FileRole
from featcache.store.errors import CacheError
from featcache.store.journal import FEATURES, Plan
from featcache.store.manifest import Manifest
from featcache.store.regular_files import has_content
from featcache.store.zarr_metadata import group_metadata_paths, metadata_documents


def unfinished_addition(directory: Path, manifest: Manifest) -> Plan | None:
    """Return the plan of an addition to the complete cache at `directory`; None if there is none."""
    try:
        plan = Plan.read(directory)
        held = plan.spec != manifest.spec or manifest.inventory.covers(plan.inventory)
    except (FileNotFoundError, CacheError):
        return None
    return None if held else plan


def without_new_groups(
    directory: Path, manifest: Manifest, plan: Plan, damages: Sequence[Damage]
) -> list[Damage]:
    """Leave out the groups' metadata that the addition was about to finish with: it is written before the manifest."""
    groups = {f"{FEATURES}/{path}" for path in group_metadata_paths(manifest.inventory)}
    suspects = [d for d in damages if d.location.path in groups and d.location.role == FileRole.METADATA]
    if not suspects:
        return list(damages)
    documents = metadata_documents(manifest.inventory.plus(plan.inventory))
    return [
        d
        for d in damages
        if d not in suspects or not _holds(directory / d.location.path, d.location.path, documents)
    ]


def _holds(path: Path, name: str, documents: Mapping[str, bytes]) -> bool:
    document = documents.get(name.removeprefix(f"{FEATURES}/"))
    return document is not None and has_content(path, document)
