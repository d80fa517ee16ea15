"""Rows of the exact solver from before ``--head linear --solver exact`` and ``--head logreg`` shared the name ``logreg``. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featcache.probing.heads.info import EXACT, SOLVED_HEAD
from featcache.store.catalogue.entries import slug
from featcache.store.files import canonical_json

if TYPE_CHECKING:
    from featcache.probing.results.rows import ResultRow

FORMER_HEAD = "linear"
"""Name of the head in rows of ``--solver exact`` that earlier versions wrote."""
_NO_OUTCOME = ("run", "folder", "setup", "seconds", "finished_at")
"""Fields that may differ where the same head was solved for twice, once under each name."""


def with_present_name(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the JSON values of a row with the present name of its head."""
    if (document.get("head"), document.get("solver")) != (FORMER_HEAD, EXACT):
        return document
    return {**document, "head": SOLVED_HEAD, "chosen_head": SOLVED_HEAD}


def heads_in_results(heads: Sequence[str], solvers: Sequence[str]) -> list[str]:
    """Return the names in the results of heads that are asked for together with solvers."""
    if FORMER_HEAD not in heads or EXACT not in solvers:
        return list(heads)
    kept = heads if len(set(solvers)) > 1 else [head for head in heads if head != FORMER_HEAD]
    return list(dict.fromkeys((*kept, SOLVED_HEAD)))


def share_setups(rows: Sequence["ResultRow"]) -> list["ResultRow"]:
    """Give rows of the former name the `setup` that the same run has under the present name, so that they are repetitions of it.

    Two rows are the same run if they share a folder (`probe` wrote the row again, under the present name), or if their outcomes are
    equal. Any other row of the former name keeps its setup: the digest does not tell what it stands for.
    """
    present = [row for row in rows if row.solver == EXACT and not _has_former_name(row)]
    former = [row for row in rows if row.setup and _has_former_name(row)]
    if not former:
        return list(rows)
    by_folder = {row.folder: row.setup for row in present}
    by_outcome = {_outcome(row): row.setup for row in present}
    by_setup = {row.setup: by_folder[row.folder] for row in former if row.folder in by_folder}
    setups = {
        row.run: by_setup.get(row.setup) or by_outcome.get(_outcome(row)) or row.setup for row in former
    }
    return [replace(row, setup=setups.get(row.run, row.setup)) for row in rows]


def _has_former_name(row: "ResultRow") -> bool:
    """Return whether a row was written under the former name; a row that `probe` wrote again has another run than its folder."""
    if row.solver != EXACT:
        return False
    start = "-".join(map(slug, (row.dataset, row.model, FORMER_HEAD)))
    return row.folder.startswith(f"heads/{start}-") and row.folder.endswith(f"-{row.run}")


def _outcome(row: "ResultRow") -> bytes:
    document = row.to_dict()
    return canonical_json({name: value for name, value in document.items() if name not in _NO_OUTCOME})
