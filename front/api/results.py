"""`featcache.results`: what probes gave, chosen and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attrs import field, fields, frozen

from featcache.api.signatures import takes_parameters_of
from featcache.extraction.models.names import model_names
from featcache.probing.report.comparison import SCORE as PUBLISHED_SCORE
from featcache.probing.report.groups import SCORES, Group, filter_rows, group_rows
from featcache.probing.report.paired_images import PairedImages
from featcache.probing.report.reference import SOLVED_PROBE, TRAINED_PROBE, parse_reference
from featcache.probing.report.tables import Table
from featcache.probing.report.views import VIEWS, Against
from featcache.probing.results.rows import RESULTS_FILE, ResultRow, count_lines, read_rows
from featcache.probing.results.solved_rows import heads_in_results
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.home import expanded
from featcache.store.parameters import PROGRESS, as_path, parameter
from featcache.store.progress import Reporter
from featcache.terminal.console import ConsoleReporter

FOLDER = "featcache-results"
Filter = str | int | Sequence[str | int]
"""A value, or several of which a result must have one."""


def as_values(given: Filter) -> tuple[str, ...]:
    """Convert a value, or several, to the texts that results are compared with."""
    return (str(given),) if isinstance(given, str | int) else tuple(map(str, given))


@frozen(kw_only=True)
class ResultRequest:
    """Which results to look at, and over what they gain."""

    score: str = field(
        default=SCORES[0],
        metadata=parameter(
            f"Score to compare: {', '.join(SCORES)}; main is the main score of each target type.",
            "--score",
            metavar="NAME",
        ),
    )
    against: str | None = field(
        default=None,
        metadata=parameter(
            "Reference of gains: solved or trained, the linear probe on the last class token; best-layer; or HEAD:LAYERS:TOKENS.",
            "--against",
            metavar="REFERENCE",
            default="solved",
        ),
    )
    model: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results of these models, by any of their names.",
            "--model",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    dataset: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results on these datasets, by the slug of the name.",
            "--dataset",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    head: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results of these heads.", "--head", metavar="NAME", repeated=True, several=True
        ),
    )
    layers: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results on this layer set or list of layers.", "--layers", metavar="NAME", repeated=True
        ),
    )
    tokens: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results on these token kinds, such as cls+ap.",
            "--tokens",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    tap: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results on tokens of these taps.", "--tap", metavar="NAME", repeated=True, several=True
        ),
    )
    views: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results on these views of the images, such as plain or plain+flip.",
            "--views",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    input: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results with these input transforms.",
            "--input",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    protocol: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results of these protocols.", "--protocol", metavar="NAME", repeated=True, several=True
        ),
    )
    solver: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results of these solvers: adamw, exact and so on.",
            "--solver",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    shots: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results from this many training samples of each class; all for runs on all of train.",
            "--shots",
            metavar="NAME",
            repeated=True,
            several=True,
        ),
    )
    seed: tuple[str, ...] = field(
        default=(),
        converter=as_values,
        metadata=parameter(
            "Only results of these seeds.", "--seed", metavar="NAME", repeated=True, several=True
        ),
    )

    @property
    def filters(self) -> dict[str, list[str]]:
        """Values by field, split at commas; those of `layers` are not, since a list of layers is one name."""
        return {
            field.name: [
                part
                for value in getattr(self, field.name)
                for part in ([value] if field.name == "layers" else value.split(","))
            ]
            for field in fields(ResultRequest)
            if field.name not in ("score", "against")
        }


OUT = parameter("Folder of the results, as `probe` takes it.", python_only="FOLDER is an argument")


@frozen(kw_only=True)
class ViewRequest(ResultRequest):
    """Which results to compare, and in which view."""

    view: str = field(
        default="summary",
        metadata=parameter(
            "summary: a row for each head over its seeds; runs: each seed; pivot: datasets x heads; gains: the same over the "
            "reference, with significance; published: next to the paper's scores.",
            "--view",
            metavar="VIEW",
        ),
    )


@frozen(kw_only=True)
class ResultsCall(ViewRequest):
    """A call of `featcache.results`."""

    out: Path = field(  # type: ignore[assignment]  # the default is converted too
        default=FOLDER, converter=as_path, kw_only=False, metadata=OUT
    )
    progress: bool = field(default=True, metadata=PROGRESS)


@takes_parameters_of(ResultsCall)
def results(call: ResultsCall) -> Table:
    """Compare what probes gave, in a table.

    `read_rows` returns the results as they are, one for each run.

    Raises:
        RequestError: there are no such results, or an argument has no effect on the view.
        UnknownNameError: a view, a score or a value does not exist.

    Example:
        >>> featcache.results(layers="all", view="pivot").to_pandas()  # doctest: +SKIP
    """
    check_view(call)
    found = chosen(expanded(call.out), call, ConsoleReporter(quiet=not call.progress))
    require_score(found, call.score)
    return make_table(found, call.view)


@dataclass(frozen=True)
class Chosen:
    """Results that were chosen, grouped over seeds, and what they are compared with."""

    groups: list[Group]
    against: Against


def chosen(folder: Path, request: ResultRequest, reporter: Reporter) -> Chosen:
    """Choose and group the results in a folder.

    Raises:
        RequestError: there are none, or the reference is no ``HEAD:LAYERS:TOKENS``.
        UnknownNameError: a score or a value of a filter does not exist.
    """
    reference = parse_reference(request.against)
    groups = group_rows(_chosen_rows(folder, request.filters, reporter), request.score)
    every = group_rows(read_rows(folder), request.score)
    if request.against is None and _lacks_solved_probe(every):
        reference = TRAINED_PROBE
        reporter.message(
            "note: these results hold no solved linear probe, so gains are over the trained one, which a short training may leave far "
            f"below; `featcache probe {SOLVED_PROBE.remedy} --out {folder}` adds it"
        )
    return Chosen(groups, Against(reference, every, PairedImages(folder)))


def _lacks_solved_probe(groups: Sequence[Group]) -> bool:
    has_trained = any(TRAINED_PROBE.matches(group) for group in groups)
    return has_trained and not any(SOLVED_PROBE.matches(group) for group in groups)


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
    criteria = dict(filters)
    # A model has several names, one of which is in the results.
    criteria["model"] = [
        next((alias for alias in model_names(name) if alias in known), name) for name in criteria["model"]
    ]
    criteria["head"] = heads_in_results(criteria["head"], criteria["solver"])
    return filter_rows(rows, criteria)


def check_view(request: ViewRequest) -> None:
    """Refuse options that a view would ignore.

    Raises:
        UnknownNameError: there is no such view.
        RequestError: an option has no effect on the view; the message names the option and its views.
    """
    view, score = request.view, request.score
    if view not in VIEWS:
        raise UnknownNameError("view", view, VIEWS)
    if request.against is not None and view not in ("summary", "gains"):
        raise RequestError(
            f"--against is for --view gains and summary, and --view {view} shows no gains; leave it out"
        )
    if view == "published" and score not in (SCORES[0], PUBLISHED_SCORE):
        raise RequestError(
            f"--view published compares {PUBLISHED_SCORE}, the paper's score; leave --score {score} out"
        )
