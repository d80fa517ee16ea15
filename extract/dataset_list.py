"""What ``featcache datasets`` lists: the datasets with a short name, and whether they are on disk."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from featcache.extract.sources.aliases import aliases
from featcache.extract.sources.paper_sets import on_disk
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
    cite: str | None
    on_disk: str | None
    """Folder of a copy."""

    def to_dict(self) -> JsonObject:
        """Return the dataset as plain JSON values."""
        return asdict(self)


def listed_datasets(part: str = "") -> Iterator[ListedDataset]:
    """The datasets with `part` in their name or domain, in the paper's order."""
    for alias in aliases().values():
        if part.lower() in f"{alias.name} {alias.display_name} {alias.domain}".lower():
            folder, citation = on_disk(alias), alias.citation
            yield ListedDataset(
                alias.name,
                alias.display_name,
                alias.domain,
                alias.num_classes,
                alias.train_images,
                alias.test_images,
                alias.repository,
                citation.licence,
                citation.text,
                None if folder is None else str(folder),
            )
