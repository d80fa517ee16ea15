"""Results next to the published scores of arXiv 2601.09322."""

from collections.abc import Sequence
from statistics import mean

from featcache.probe.protocol import L2_INPUT
from featcache.probe.published import PublishedDataset, published_dataset, published_model, published_score
from featcache.probe.report.groups import Group
from featcache.probe.report.numbers import number
from featcache.probe.report.tables import Table, Value
from featcache.probe.request import ADAMW
from featcache.probe.results import ResultRow
from featcache.store.errors import RequestError
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.layers import FINAL

SCORE = "balanced_accuracy"
COLUMNS = (
    *("dataset", "model", "head", "layers", "tokens", "protocol", "runs"),
    *("balanced accuracy", "published", "difference"),
)
PAPERS_OWN = "paper-parity"


def beside_published(groups: Sequence[Group]) -> Table:
    """Compare what has a backbone, a dataset and a head of the paper, and was trained on all of train as there.

    Raises:
        RequestError: nothing has.
    """
    lines: list[list[Value]] = []
    gaps, notes = [], []
    for group in groups:
        row = group.first
        model, dataset = published_model(row.model), published_dataset(row.dataset)
        as_there = (group.score, row.shots, row.input, row.solver) == (
            *(SCORE, None, L2_INPUT, ADAMW),
        ) and row.tap in (DEFAULT_TAP, FINAL)
        if not as_there or model is None or dataset is None:
            continue
        score = published_score(model, dataset.name, row.head, row.layers, row.tokens)
        if score is None:
            continue
        gaps.append(group.mean - score)
        notes += _other_sizes(row, dataset)
        lines.append(
            [
                *(dataset.name, model, row.head, row.layers, "+".join(row.tokens), row.protocol),
                len(group.by_seed),
                number(SCORE, group.mean, group.deviation),
                number(SCORE, score),
                number(SCORE, group.mean - score, signed=True),
            ]
        )
        if row.protocol != PAPERS_OWN:
            notes.append(f"the published runs are those of the protocol {PAPERS_OWN}")
    if not lines:
        raise RequestError(
            "no result has a backbone, a dataset and a head of arXiv 2601.09322, whose balanced accuracies there are to compare with"
        )
    if len(lines) > 1:
        rest: list[Value] = [None] * (len(COLUMNS) - 2)
        lines.append(["mean", *rest, number(SCORE, mean(gaps), signed=True)])
    return Table(COLUMNS, lines, list(dict.fromkeys(notes)))


def _other_sizes(row: ResultRow, dataset: PublishedDataset) -> list[str]:
    """A dataset of the same name may be another."""
    sizes = (
        ("train", row.train_samples, dataset.train_samples),
        ("test", row.test_samples, dataset.test_samples),
    )
    return [
        f"{row.dataset}: the {split} split here has {ours:,} samples, the paper's {theirs:,}"
        for split, ours, theirs in sizes
        if theirs is not None and ours != theirs
    ]
