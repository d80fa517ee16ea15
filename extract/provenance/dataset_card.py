"""What a cache's card says of its dataset: targets and their counts, license, citation."""

from featcache.extraction.sources.base import Citation
from featcache.store.journal import FEATURES
from featcache.store.reading.split import SplitReader
from featcache.store.targets import REGRESSION
from featcache.store.text import escape_cell
from featcache.store.writing.writer import CacheWriter

MAX_ROWS = 1000


def about_dataset(writer: CacheWriter, citation: Citation) -> str:
    """Sections for the card, in Markdown.

    Args:
        writer: of the cache, whose blocks are all committed.
        citation: license and citation, as far as they are known.
    """
    known = (("licence", citation.license), ("cite", citation.text), ("homepage", citation.homepage))
    rows = [f"| {what} | {_cell(text)} |" for what, text in known if text]
    terms = ["", "## Dataset", "", "| | |", "|---|---|", *rows, ""] if rows else []
    return "\n".join([*_targets(writer), *terms])


def _targets(writer: CacheWriter) -> list[str]:
    targets = writer.plan.inventory.targets
    readers = {
        split.name: SplitReader(writer.directory / FEATURES, split, split.blocks(), targets)
        for split in writer.plan.inventory.splits.values()
        if "label" in split.arrays
    }
    if not targets.labeled:
        return ["", "The samples have no labels; `featcache label CACHE labels.csv` attaches some."]
    if not readers:
        return []
    labels = {name: reader.labels()[reader.valid()] for name, reader in readers.items()}
    if targets.type == REGRESSION:
        head, columns = ["target", "unit", *(f"{name}: mean (min to max)" for name in labels)], []
        for index, name in enumerate(targets.names):
            unit = targets.units[index] if targets.units else ""
            ranges = [
                f"{part[:, index].mean():.4g} ({part[:, index].min():.4g} to {part[:, index].max():.4g})"
                for part in labels.values()
                if len(part)
            ]
            columns.append([name, unit, *ranges])
    else:
        head = ["class", *labels]
        counts = [targets.counts(part) for part in labels.values()]
        columns = [
            [name, *(str(count[index]) for count in counts)] for index, name in enumerate(targets.names)
        ]
    rows = [f"| {' | '.join(map(_cell, column))} |" for column in columns[:MAX_ROWS]]
    more = [f"\n{len(columns) - MAX_ROWS} more are not listed."] if len(columns) > MAX_ROWS else []
    return [
        "",
        f"## Targets ({targets.type})",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *rows,
        *more,
        "",
    ]


def _cell(text: str) -> str:
    return escape_cell(text.replace("\n", " "))
