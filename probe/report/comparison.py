"""Results next to the published scores of arXiv 2601.09322."""

from collections.abc import Iterator, Sequence
from statistics import mean

from featcache.probing.protocols.protocol import L2_INPUT
from featcache.probing.published import (
    PublishedDataset,
    has_other_activation,
    preprocessing_note,
    published_dataset,
    published_model,
    published_score,
)
from featcache.probing.report.groups import Group, own_num_heads
from featcache.probing.report.numbers import number
from featcache.probing.report.preprocessing import model_text, words_of_groups
from featcache.probing.report.tables import Table, Value
from featcache.probing.requests.request import ADAMW
from featcache.probing.results.rows import ResultRow
from featcache.store.errors import RequestError
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.layers import FINAL
from featcache.store.views import PLAIN_VIEW

SCORE = "balanced_accuracy"
COLUMNS = (
    *("dataset", "model", "head", "layers", "tokens", "protocol", "runs"),
    *("balanced accuracy", "published", "difference"),
)
PAPERS_OWN = "paper-parity"


def beside_published(groups: Sequence[Group]) -> Table:
    """Compare what has a backbone, a dataset and a head of the paper, attention heads and all, and was trained on all of train.

    Raises:
        RequestError: nothing has.
    """
    lines: list[list[Value]] = []
    gaps, notes = [], []
    found = list(_comparable(groups))
    words = words_of_groups([group for group, *_ in found])
    names = {(model, group.first.model) for group, model, *_ in found}
    for group, model, dataset, score in found:
        row = group.first
        gaps.append(group.mean - score)
        notes += _other_sizes(row, dataset)
        # Extracted under several names, it may be with GELU and with QuickGELU.
        alone = sum(one == model for one, _ in names) == 1 and row.cache_key not in words
        lines.append(
            [
                *(
                    dataset.name,
                    model if alone else model_text(row, words),
                    row.head,
                    row.layers,
                    "+".join(row.tokens),
                ),
                *(row.protocol, len(group.by_seed)),
                number(SCORE, group.mean, group.deviation),
                number(SCORE, score),
                number(SCORE, group.mean - score, signed=True),
            ]
        )
        notes.append(preprocessing_note(model, row.preprocessing))
        if has_other_activation(row.model):
            notes.append(f"{row.model}: QuickGELU here, as CLIP was trained; GELU in the published runs")
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


def _comparable(groups: Sequence[Group]) -> Iterator[tuple[Group, str, PublishedDataset, float]]:
    """Groups that the paper has a counterpart of, with its names of backbone and dataset, and its score."""
    for group in groups:
        row = group.first
        model, dataset = published_model(row.model), published_dataset(row.dataset)
        asked = group.score, row.shots, row.input, row.solver
        as_there = (
            asked == (SCORE, None, L2_INPUT, ADAMW)
            and row.tap in (DEFAULT_TAP, FINAL)
            and tuple(row.views) == (PLAIN_VIEW,)
            and row.num_heads in (None, own_num_heads(row))
        )
        if not as_there or model is None or dataset is None:
            continue
        score = published_score(model, dataset.name, row.head, row.layers, row.tokens)
        if score is not None:
            yield group, model, dataset, score


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
