"""The rows of ``featcache datasets``: the datasets with a short name, and whether they are on disk."""

from dataclasses import asdict, dataclass

from featcache.extraction.sources.aliases import Alias, aliases
from featcache.extraction.sources.paper_sets import on_disk
from featcache.store.errors import UnknownNameError
from featcache.store.files import JsonObject


@dataclass(frozen=True)
class ListedDataset:
    """One dataset."""

    alias: str
    display_name: str
    domain: str
    num_classes: int
    train_images: int
    test_images: int | None
    repository: str
    licence: str | None
    """Spelled as in the JSON of `featcache datasets`."""
    cite: str | None
    on_disk: str | None
    """Folder of a copy."""

    def to_dict(self) -> JsonObject:
        """Return the dataset as plain JSON values."""
        return asdict(self)


def listed_datasets(part: str = "") -> list[ListedDataset]:
    """Return the datasets with `part` in their name or domain, in the paper's order.

    Raises:
        UnknownNameError: there is none.
    """
    every = aliases().values()
    found = [
        alias
        for alias in every
        if part.lower() in f"{alias.name} {alias.display_name} {alias.domain}".lower()
    ]
    if not found:
        raise UnknownNameError("dataset or domain", part, [alias.name for alias in every])
    return [_listed(alias) for alias in found]


def _listed(alias: Alias) -> ListedDataset:
    folder, citation = on_disk(alias), alias.citation
    return ListedDataset(
        alias.name,
        alias.display_name,
        alias.domain,
        alias.num_classes,
        alias.train_images,
        alias.test_images,
        alias.repository,
        citation.license,
        citation.text,
        None if folder is None else str(folder),
    )
