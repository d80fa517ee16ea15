"""`featcache.results`: what probes gave, chosen and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.api.types import PathLike
from featcache.extraction.models.names import model_names
from featcache.probing.report.comparison import SCORE as PUBLISHED_SCORE
from featcache.probing.report.groups import SCORES, Group, filter_rows, group_rows
from featcache.probing.report.tables import Table
from featcache.probing.report.views import VIEWS, Against, parse_reference
from featcache.probing.results.rows import RESULTS_FILE, ResultRow, count_lines, read_rows
from featcache.probing.results.solved_rows import heads_in_results
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.progress import Reporter
from featcache.terminal.console import ConsoleReporter

FOLDER = "featcache-results"
FILTERS = (
    "model",
    "dataset",
    "head",
    "layers",
    "tokens",
    "tap",
    "input",
    "protocol",
    "solver",
    "shots",
    "seed",
)
"""Fields that results are chosen by."""
Filter = str | int | Sequence[str | int]
"""A value, or several of which a result must have one."""


def results(
    out: PathLike = FOLDER,
    *,
    view: str = "summary",
    score: str = SCORES[0],
    against: str | None = None,
    model: Filter = (),
    dataset: Filter = (),
    head: Filter = (),
    layers: Filter = (),
    tokens: Filter = (),
    tap: Filter = (),
    input: Filter = (),
    protocol: Filter = (),
    solver: Filter = (),
    shots: Filter = (),
    seed: Filter = (),
    progress: bool = True,
) -> Table:
    """Compare what probes gave, in a table.

    `read_rows` returns the results as they are, one for each run.

    Args:
        out: folder of the results, as `probe` takes it.
        view: ``summary`` (a row for each head over its seeds), ``runs`` (each seed), ``pivot`` (datasets x heads), ``gains``
            (the same over `against`, with significance) or ``published`` (next to the paper's scores).
        score: the score to compare, such as ``balanced_accuracy``; the main score of each kind of targets by default.
        against: the reference of gains, as ``HEAD:LAYERS:TOKENS``; ``linear:last:cls`` if not given.
        model: only results of this model, or of one of these; like the arguments below.
        dataset: slug of the dataset's name.
        head: name of the head.
        layers: layer set or list of layers.
        tokens: token kinds, such as ``cls+ap``.
        tap: where in the blocks the tokens were taken.
        input: input stage.
        protocol: name of the protocol.
        solver: ``adamw``, ``exact`` and so on.
        shots: training samples of each class; ``all`` for runs on all of train.
        seed: seed of the run.
        progress: show messages on stderr, such as the number of lines that cannot be read.

    Raises:
        RequestError: there are no such results, or an argument has no effect on the view.
        UnknownNameError: a view, a score or a value does not exist.

    Example:
        >>> featcache.results(layers="all", view="pivot").to_pandas()  # doctest: +SKIP
    """
    filters = {
        "model": model,
        "dataset": dataset,
        "head": head,
        "layers": layers,
        "tokens": tokens,
        "tap": tap,
        "input": input,
        "protocol": protocol,
        "solver": solver,
        "shots": shots,
        "seed": seed,
    }
    reporter = ConsoleReporter(quiet=not progress)
    check_view(view, score, against)
    found = chosen(expanded(out), texts_of(filters), score, against, reporter)
    require_score(found, score)
    return make_table(found, view)


def texts_of(filters: Mapping[str, Filter]) -> dict[str, tuple[str, ...]]:
    """Return filters as the command line takes them."""
    return {
        name: (str(given),) if isinstance(given, str | int) else tuple(map(str, given))
        for name, given in filters.items()
    }


@dataclass(frozen=True)
class Chosen:
    """Results that were chosen, grouped over seeds, and what they are compared with."""

    groups: list[Group]
    against: Against


def chosen(
    folder: Path,
    filters: Mapping[str, Sequence[str]],
    score: str,
    against: str | None,
    reporter: Reporter,
) -> Chosen:
    """Choose and group the results in a folder.

    Raises:
        RequestError: there are none, or the reference is no ``HEAD:LAYERS:TOKENS``.
        UnknownNameError: a score or a value of a filter does not exist.
    """
    reference = parse_reference(against)
    groups = group_rows(_chosen_rows(folder, filters, reporter), score)
    return Chosen(groups, Against(reference, group_rows(read_rows(folder), score)))


def require_score(found: Chosen, score: str) -> None:
    """Refuse a score that none of the chosen results has, and so a table without rows."""
    if not found.groups:
        raise RequestError(f"no result has the score {score}")


def make_table(found: Chosen, view: str) -> Table:
    """Make the table of a view."""
    return VIEWS[view](found.groups, found.against)


def _chosen_rows(folder: Path, filters: Mapping[str, Sequence[str]], reporter: Reporter) -> list[ResultRow]:
    rows = read_rows(folder)
    if not rows:
        what = "no results that this version can read" if (folder / RESULTS_FILE).exists() else "no results"
        raise RequestError(f"{folder} holds {what}; `featcache probe --out {folder}` makes some")
    unread = count_lines(folder) - len(rows)
    if unread:
        what = "1 line" if unread == 1 else f"{unread} lines"
        reporter.message(f"note: {what} of {folder / RESULTS_FILE}, torn or of another version, passed over")
    known = {row.model for row in rows}
    criteria = {
        # A list of layers is one name.
        name: list(values) if name == "layers" else [part for value in values for part in value.split(",")]
        for name, values in filters.items()
    }
    # A model has several names, one of which is in the results.
    criteria["model"] = [
        next((alias for alias in model_names(name) if alias in known), name) for name in criteria["model"]
    ]
    criteria["head"] = heads_in_results(criteria["head"], criteria["solver"])
    return filter_rows(rows, criteria)


def check_view(view: str, score: str, against: str | None) -> None:
    """Refuse options that a view would ignore.

    Raises:
        UnknownNameError: there is no such view.
        RequestError: an option has no effect on the view; the message names the option and its views.
    """
    if view not in VIEWS:
        raise UnknownNameError("view", view, VIEWS)
    if against is not None and view not in ("summary", "gains"):
        raise RequestError(
            f"--against is for --view gains and summary, and --view {view} shows no gains; leave it out"
        )
    if view == "published" and score not in (SCORES[0], PUBLISHED_SCORE):
        raise RequestError(
            f"--view published compares {PUBLISHED_SCORE}, the paper's score; leave --score {score} out"
        )
