"""Results next to the published scores of arXiv 2601.09322."""

from collections.abc import Iterator, Sequence
from statistics import mean

from featcache.probing.protocols.files import preset_names
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
from featcache.probing.report.paired_images import PairedImages
from featcache.probing.report.pivot import Cell, differences
from featcache.probing.report.preprocessing import model_text, words_of_groups
from featcache.probing.report.reference import TRAINED_PROBE
from featcache.probing.report.tables import INTERVALS, Table, Value
from featcache.probing.requests.request import ADAMW
from featcache.probing.results.rows import ResultRow
from featcache.store.errors import RequestError
from featcache.store.inventory import DEFAULT_TAP
from featcache.store.layers import FINAL
from featcache.store.views import PLAIN_VIEW

SCORE = "balanced_accuracy"
COLUMNS = (
    *("dataset", "model", "head", "layers", "tokens", "protocol", "runs", "test n"),
    *("balanced accuracy", "published", "difference", "over trained", "published over trained"),
)
LIKE_THE_PAPERS = ("paper", "paper-parity")
PAPERS_OWN = "paper-parity"


def beside_published(
    groups: Sequence[Group], every: Sequence[Group], images: PairedImages | None = None
) -> Table:
    """Compare what has a backbone, a dataset and a head of the paper, attention heads and all, and was trained on all of train.

    Like is compared with like: results of the preset `quick` are left out, and gains, here and published, are both over the linear
    probe on the last class token that the same protocol trained.

    Args:
        groups: what is compared.
        every: all groups of the results, among which the trained linear probe is looked for.
        images: the predictions of test images, for intervals of gains.

    Raises:
        RequestError: nothing has.
    """
    lines: list[list[Value]] = []
    gaps, notes = [], []
    comparable = list(_comparable(groups))
    found = [one for one in comparable if _is_like_the_papers(one[0].first.protocol)]
    left_out = sorted(
        {group.first.protocol for group, *_ in comparable} - {g.first.protocol for g, *_ in found}
    )
    if left_out:
        notes.append(
            f"results of the protocol {', '.join(left_out)} are left out: the published runs are full sweeps"
        )
    gains = _gains([group for group, *_ in found], every, images)
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
                *(row.protocol, len(group.by_seed), group.test_samples),
                number(SCORE, group.mean, group.deviation, interval=group.image_interval),
                number(SCORE, score),
                number(SCORE, group.mean - score, signed=True),
                _gain(gains.get(id(group))),
                _published_gain(model, dataset, score, row),
            ]
        )
        notes.append(preprocessing_note(model, row.preprocessing))
        if has_other_activation(row.model):
            notes.append(f"{row.model}: QuickGELU here, as CLIP was trained; GELU in the published runs")
        if row.protocol != PAPERS_OWN:
            notes.append(f"the published runs are those of the protocol {PAPERS_OWN}")
    if not lines:
        raise RequestError(
            "; ".join(
                (
                    "no result has a backbone, a dataset and a head of arXiv 2601.09322, whose balanced accuracies there are to compare "
                    "with",
                    *notes,
                )
            )
        )
    if len(lines) > 1:
        rest: list[Value] = [None] * (COLUMNS.index("difference") - 1)
        lines.append(["mean", *rest, number(SCORE, mean(gaps), signed=True), None, None])
    if any(group.image_interval for group, *_ in found):
        notes.append(INTERVALS)
    return Table(COLUMNS, lines, list(dict.fromkeys(notes)))


def _is_like_the_papers(protocol: str) -> bool:
    """Return whether a protocol is the paper's or one of the user's own; of the latter, a row does not tell how long it trains."""
    return protocol in LIKE_THE_PAPERS or protocol not in preset_names()


def _gains(groups: Sequence[Group], every: Sequence[Group], images: PairedImages | None) -> dict[int, Cell]:
    """Return the gains over the linear probe that the same protocol trained; empty where there is none."""
    try:
        found = differences(groups, every, TRAINED_PROBE, images)
    except RequestError:
        return {}
    return {key: cell for key, cell in found.items() if cell.alike}


def _gain(cell: Cell | None) -> Value:
    if cell is None:
        return None
    return number(SCORE, cell.mean, cell.deviation, signed=True, interval=cell.interval)


def _published_gain(model: str, dataset: PublishedDataset, score: float, row: ResultRow) -> Value:
    reference = published_score(model, dataset.name, "linear", "last", ("cls",))
    if reference is None or (row.head, row.layers, tuple(row.tokens)) == ("linear", "last", ("cls",)):
        return None
    return number(SCORE, score - reference, signed=True)


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
