"""Runs that differ in nothing but their seed, and which runs are meant at all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from statistics import mean

from featcache.probing.inputs.selection import view_words
from featcache.probing.report.significance import are_alike, mean_interval, spread
from featcache.probing.requests.jobs import PATCH_HEADS
from featcache.probing.requests.request import CHOICE
from featcache.probing.results.rows import ResultRow
from featcache.probing.results.solved_rows import share_setups
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.layers import TOKEN_KINDS
from featcache.store.token_groups import STATISTICS
from featcache.store.views import PLAIN_VIEW

MAIN = "main"
"""Stands for the score that a run was chosen by: balanced accuracy, mean average precision or R2."""
SCORES = (
    *(MAIN, "balanced_accuracy", "top1", "top5", "macro_f1", "nll", "ece"),
    *("mean_average_precision", "micro_f1", "r2", "spearman", "mse", "mae"),
)
LESS_IS_BETTER = ("nll", "ece", "mse", "mae")
_BOUNDS = {
    "r2": (-inf, 1.0),
    "spearman": (-1.0, 1.0),
    **dict.fromkeys(("nll", "mse", "mae"), (0.0, inf)),
}


def clip(score: str, interval: tuple[float, float]) -> tuple[float, float]:
    """Clip an interval to the range of a score: 0 to 1 for most."""
    least, most = _BOUNDS.get(score, (0.0, 1.0))
    return max(least, interval[0]), min(most, interval[1])


NO_FRACTION = ("nll", "mse", "mae")
"""Scores that percent mean nothing of."""
SETTINGS = (
    *(
        "setup",
        "cache_key",
        "model",
        "dataset",
        "head",
        "layers",
        "layer_names",
        "tokens",
        "tap",
        "views",
        "options",
    ),
    *("solver", "penalty_kind", "protocol", "input", "shots", "folds", "precision", "target_kind", "metric"),
)
"""Fields of a row that a group has in common."""


@dataclass(frozen=True)
class Group:
    """Runs with the same settings, one for each seed (of few-shot runs: for each draw and seed)."""

    rows: tuple[ResultRow, ...]
    """By draw and seed."""
    asked: str
    """Which score is looked at, as asked for."""

    @property
    def score(self) -> str:
        """Which score is looked at."""
        return self.first.metric if self.asked == MAIN else self.asked

    @property
    def first(self) -> ResultRow:
        """Any row: for what they have in common."""
        return self.rows[0]

    @property
    def name(self) -> str:
        """Head, layers and tokens, and the views unless the plain one is the only one."""
        views = self.first.views
        words = "" if tuple(views) == (PLAIN_VIEW,) else f" {view_words(views)}"
        return f"{self.first.head} {self.first.layers} {'+'.join(self.first.tokens)}{words}"

    @cached_property
    def by_seed(self) -> dict[tuple[int, int], float]:
        """The score of every draw and seed."""
        values = {(row.draw, row.seed): row.scores.get(self.score) for row in self.rows if not row.diverged}
        return {seed: value for seed, value in values.items() if value is not None}

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean(self.by_seed.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over repetitions; None for a single one, or if all are equal."""
        return None if self.alike else spread(repetitions(self.by_seed))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean over repetitions, within the score's bounds; None for a single one, or if all are equal."""
        interval = mean_interval(repetitions(self.by_seed))
        return None if interval is None else clip(self.score, interval)

    @property
    def image_interval(self) -> tuple[float, float] | None:
        """The 95 % interval over test images: the mean over runs of its ends.

        None where a run has none. Intervals without width, which earlier versions wrote where classes had one or two test images,
        count as none.
        """
        pairs = [
            _image_interval(row, self.score) for row in self.rows if (row.draw, row.seed) in self.by_seed
        ]
        known = [pair for pair in pairs if pair is not None]
        if not known or len(known) < len(pairs):
            return None
        return mean(low for low, _ in known), mean(high for _, high in known)

    @property
    def test_samples(self) -> str:
        """Number of test samples that the scores are of, for people; a range where runs differ."""
        numbers = sorted({row.test_samples for row in self.rows})
        return f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"

    @property
    def alike(self) -> bool:
        """True if several repetitions gave equal scores, so that an interval would have no meaning."""
        return are_alike(repetitions(self.by_seed))


def _image_interval(row: ResultRow, score: str) -> tuple[float, float] | None:
    pair = row.score_intervals.get(score)
    if pair is None and score == row.metric:
        pair = row.score_interval
    return None if pair is None or pair[0] == pair[1] else (pair[0], pair[1])


def repetitions(by_seed: Mapping[tuple[int, int], float]) -> list[float]:
    """Values that are independent of each other, of those by draw and seed: seeds of one draw of samples are not, their mean is."""
    draws: dict[int, list[float]] = {}
    for (draw, _), value in sorted(by_seed.items()):
        draws.setdefault(draw, []).append(value)
    return [mean(values) for values in draws.values()] if len(draws) > 1 else [*draws[min(draws)]]


def group_rows(rows: Iterable[ResultRow], score: str = MAIN) -> list[Group]:
    """Group rows over draws and seeds; of several runs of one seed the last counts. Groups without the score are left out.

    Raises:
        UnknownNameError: there is no such score.
    """
    if score not in SCORES:
        raise UnknownNameError("score", score, SCORES)
    found: dict[tuple[object, ...], dict[tuple[int, int], ResultRow]] = {}
    for row in share_setups(list(rows)):
        found.setdefault(settings(row), {})[row.draw, row.seed] = row
    groups = [Group(tuple(seeds[seed] for seed in sorted(seeds)), score) for seeds in found.values()]
    return [group for group in groups if group.by_seed]


def settings(row: ResultRow, names: Sequence[str] = SETTINGS) -> tuple[object, ...]:
    """The values of a row's settings, fit for a key."""
    return tuple(_setting(row, name) for name in names)


def _setting(row: ResultRow, name: str) -> object:
    if name == "input" and row.solver == CHOICE:
        return None  # an outcome: what auto chooses may differ from seed to seed
    if name == "views":
        return "+".join(row.views)
    return options_text(row) if name == "options" else getattr(row, name)


def options_text(row: ResultRow, but: Sequence[str] = ("num_layers",)) -> str | None:
    """What the head took besides its size, for people; the number of layers follows from the tokens. None for nothing."""
    told = {name: value for name, value in row.options.items() if name not in but}
    return ", ".join(f"{name} {value}".replace("_", " ") for name, value in told.items()) or None


def own_num_heads(row: ResultRow) -> int:
    """Attention heads where no number was asked for: one for each token, 8 where patches or registers are among them."""
    in_every_layer = set(row.tokens) <= {*TOKEN_KINDS, *STATISTICS}
    return len(row.layer_names) * len(row.tokens) if in_every_layer else PATCH_HEADS


def filter_rows(rows: Sequence[ResultRow], wanted: Mapping[str, Sequence[str]]) -> list[ResultRow]:
    """Return the rows whose fields have one of the values wanted; a field without any is not looked at.

    Args:
        rows: all of the results.
        wanted: values by field, such as ``head`` or ``layers``; ``all`` stands for the number of shots of a run that has none.

    Raises:
        UnknownNameError: no row has a value that is wanted.
        RequestError: rows have each, but none has all.
    """
    found = list(rows)
    for field, values in wanted.items():
        text = _text(field)
        valid = sorted({text(row) for row in rows})
        for value in values:
            if value not in valid:
                raise UnknownNameError(field, value, valid, "(of those in the results)")
        if values:
            found = [row for row in found if text(row) in values]
    if rows and not found:
        asked = ", ".join(f"{field} {','.join(values)}" for field, values in wanted.items() if values)
        raise RequestError(f"no result has {asked} together; fewer conditions find more")
    return found


def _text(field: str) -> Callable[[ResultRow], str]:
    if field in ("tokens", "views"):
        return lambda row: "+".join(getattr(row, field))
    return lambda row: "all" if (value := getattr(row, field)) is None else str(value)
