"""The datasets that have a short name: the twenty of arXiv 2601.09322. No network and no heavy import here."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from featcache.extraction.sources.base import Citation

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Alias:
    """A dataset with a short name, as a repository of WebDataset shards on the Hub."""

    name: str
    repository: str
    display_name: str
    domain: str
    num_classes: int
    train_images: int
    test_images: int | None
    """None where it could not be confirmed."""

    @property
    def sizes(self) -> dict[str, int | None]:
        """Samples of every split."""
        return {"train": self.train_images, "test": self.test_images}

    @property
    def citation(self) -> Citation:
        """License and citation, as far as they are known."""
        entry = _citations().get(self.name, {})
        return Citation(entry.get("licence"), entry.get("cite"), entry.get("homepage"))


@cache
def aliases() -> dict[str, Alias]:
    """Return all aliases by name, in the paper's order."""
    with (FOLDER / "datasets.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["alias"]: Alias(
                row["alias"],
                row["hub_repo"],
                row["display_name"],
                row["domain"],
                int(row["classes"]),
                int(row["train_images"]),
                int(row["test_images"]) if row["test_images"] else None,
            )
            for row in csv.DictReader(file)
        }


@cache
def _citations() -> dict[str, dict[str, str]]:
    import tomllib  # only a card needs it

    return tomllib.loads((FOLDER / "citations.toml").read_text(encoding="utf-8"))
