"""Check classes written as text: missing values, one class in two spellings, and values that do not look like classes."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from featcache.store.errors import DatasetError

MISSING = frozenset(
    (
        *("", "NA", "N/A", "n/a", "<NA>", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "NaT"),
        *("#N/A", "#N/A N/A", "#NA", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
    )
)
"""Texts that pandas, R and Excel write for a missing value; pandas reads them as missing."""
DROP, KEEP = "drop", "class"
_WHOLE = re.compile(r"([+-]?)(0|[1-9]\d*)(\.0*)?")


def missing_rows(columns: Sequence[Sequence[str]], *, only_empty: bool = False) -> list[int]:
    """Return the rows where a value of any column is missing, or is empty."""
    missing = {""} if only_empty else MISSING
    return [row for row, values in enumerate(zip(*columns, strict=True)) if not missing.isdisjoint(values)]


def refuse_missing_values(rows: Sequence[int], columns: Sequence[Sequence[str]], where: str) -> None:
    """Refuse missing labels, which would become a class of their own.

    Args:
        rows: as from `missing_rows`.
        columns: the labels.
        where: the table.

    Raises:
        DatasetError: labels are missing; the message shows the first three with their rows.
    """
    if not rows:
        return
    shown = ", ".join(
        f"row {row + 2} has {next(values[row] for values in columns if values[row] in MISSING)!r}"
        for row in rows[:3]
    )
    raise DatasetError(
        f"{where}: labels are missing in {len(rows)} rows ({shown}); fill them in, leave the rows out with "
        f"csv:FILE?missing={DROP}, or read the text as a class with ?missing={KEEP}"
    )


def unify_spellings(values: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    """Give every value one spelling: ``1`` for ``1.0``, and one Unicode form; return notes on merged spellings too."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for value in sorted(set(values)):
        whole = _WHOLE.fullmatch(value)
        key = f"{whole[1].strip('+') if whole[2] != '0' else ''}{whole[2]}" if whole else value
        spellings[unicodedata.normalize("NFC", key)].append(value)
    notes: list[str] = []
    names: dict[str, str] = {}
    for key, same in spellings.items():
        # A value with a single spelling keeps it, so that its name and the dataset's identity do not change.
        names |= {value: key if len(same) > 1 else value for value in same}
        if len(same) > 1:
            notes.append(f"{where}: {', '.join(map(_shown, same))} are read as one, {key}")
    return [names[value] for value in values], notes


def unify_classes(values: Sequence[str], where: str) -> tuple[list[str], list[str]]:
    """Give every class one spelling; see `unify_spellings`.

    Returns:
        The values ``[N]``, and notes on merged spellings and odd values.
    """
    unified, notes = unify_spellings(values, f"{where}: classes")
    return unified, [*notes, *_ambiguity_notes(sorted(set(unified)), where)]


def _ambiguity_notes(classes: Sequence[str], where: str) -> list[str]:
    notes = []
    by_case: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        by_case[name.casefold()].append(name)
    twins = ["/".join(same) for same in by_case.values() if len(same) > 1]
    if twins:
        notes.append(f"{where}: classes differ in capitalization alone: {', '.join(twins[:5])}")
    numbers = [name for name in classes if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+)([eE][+-]?\d+)?", name)]
    fractions = [name for name in numbers if not float(name).is_integer()]
    if len(numbers) == len(classes) and fractions:
        notes.append(
            f"{where}: the {len(classes)} different labels are numbers such as {fractions[0]} and are read as classes; for "
            "real values give --target regression"
        )
    equal: dict[float, list[str]] = defaultdict(list)
    for name in numbers:
        equal[float(name)].append(name)
    alike = ["/".join(same) for same in equal.values() if len(same) > 1]
    if alike:
        notes.append(f"{where}: classes are equal as numbers: {', '.join(alike[:5])}")
    return notes


def _shown(value: str) -> str:
    return value if value.isascii() else ascii(value)
