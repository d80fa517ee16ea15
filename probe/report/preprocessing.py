"""Words for the preprocessing of results, wherever two caches of one model and dataset differ in it."""

from collections.abc import Iterable, Mapping

from featcache.probing.report.groups import Group
from featcache.probing.results.rows import MODEL, ResultRow
from featcache.store.preprocessing import distinguish

NOT_RECORDED = {"unknown": "preprocessing not recorded"}
"""Parts of the preprocessing of early rows."""


def preprocessing_words(rows: Iterable[ResultRow]) -> dict[str, str]:
    """Return the words for the preprocessing of caches that differ in it from another of their model and dataset, by cache key."""
    found = list(rows)
    # Of early rows the name is that of later ones that go by the same alias, if there are any.
    explicit = {row.model: row.preprocessing.get(MODEL) or row.model for row in found if row.preprocessing}
    alike: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in found:
        same = alike.setdefault((explicit.get(row.model, row.model), row.dataset), {})
        # Of one cache, rows of before may lack what later ones have.
        stated = {name: text for name, text in row.preprocessing.items() if name != MODEL}
        same[row.cache_key] = stated or same.get(row.cache_key, {})
    words: dict[str, str] = {}
    for same in alike.values():
        if any(same.values()):
            parts = [stated or NOT_RECORDED for stated in same.values()]
            words |= {key: text for key, text in zip(same, distinguish(parts), strict=True) if text}
    return words


def words_of_groups(groups: Iterable[Group]) -> dict[str, str]:
    """Return `preprocessing_words` of the rows of groups."""
    return preprocessing_words(row for group in groups for row in group.rows)


def model_text(row: ResultRow, words: Mapping[str, str]) -> str:
    """Return the model of a row, with the preprocessing where `words` has some for its cache."""
    return f"{row.model} ({words[row.cache_key]})" if row.cache_key in words else row.model
