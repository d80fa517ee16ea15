"""Which results share a column of a table: those that differ in nothing that was asked for."""

import pytest

from featcache.probing.report.columns import column_names
from featcache.probing.report.groups import group_rows
from featcache.probing.report.pivot import pivot_scores
from featcache.probing.report.reference import parse_reference
from featcache.probing.report.views import VIEWS, Against
from featcache.probing.results.rows import ResultRow

from .result_rows import made_row

ALL = {"layers": "all", "layer_names": ["0", "1", "final"], "tokens": ["cls", "ap"]}


def columns_of(*rows: ResultRow) -> list[str]:
    return list(column_names(group_rows(rows)).values())


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"protocol": "paper"}, "paper"),
        ({"input": "standard"}, "standard"),
        ({"shots": 5}, "5 shots"),
        ({"tap": "block"}, "block"),
        ({"folds": 5}, "5 folds"),
        ({"precision": "bf16"}, "bf16"),
        ({"options": {"num_heads": 2}}, "num heads 2"),
    ],
)
def test_what_was_asked_for_divides_columns_across_datasets(asked, word):
    """Each dataset has one run, and still the two have nothing that a mean could be taken of."""
    here = {"tap": "norm2", "options": {"num_heads": 6}, **ALL}
    rows = [
        made_row(0.5, **here),
        made_row(0.6, **{**here, "dataset": "other", "cache_key": "b" * 12, **asked}),
    ]
    first, second = columns_of(*rows)
    assert first != second == f"linear all cls+ap {word}"
    assert pivot_scores(group_rows(rows)).means == {}
    table = VIEWS["summary"](group_rows(rows), Against(parse_reference(None), []))
    (column,) = {*table.columns} & {"protocol", "input", "shots", "tap", "folds", "precision", "options"}
    assert len({row[table.columns.index(column)] for row in table.rows}) == 2


def test_what_follows_from_dataset_and_backbone_divides_no_columns():
    here = {"head": "attentive", "layers": "all", "tokens": ["cls", "ap"], "protocol": "mine"}
    shallow = here | {"layer_names": ["final"], "tap": "final", "options": {"num_heads": 2, "num_layers": 1}}
    deep = here | {"layer_names": ["1", "2", "final"], "options": {"num_heads": 6, "num_layers": 3}}
    small = {"dataset": "small", "cache_key": "b" * 12, "train_samples": 30, "folds": 5}
    rows = [made_row(0.5, **deep), made_row(0.7, **shallow, **small)]
    assert columns_of(*rows) == 2 * ["attentive all cls+ap"]
    assert pivot_scores(group_rows(rows)).means == {"attentive all cls+ap": pytest.approx(0.6)}
    # Other heads than the tokens give, and folds that one dataset alone was not divided into, were asked for.
    few = made_row(0.5, **deep | {"options": {"num_heads": 2, "num_layers": 3}})
    assert columns_of(*rows, few) == [*2 * ["attentive all cls+ap"], "attentive all cls+ap num heads 2"]
    names = columns_of(*rows, made_row(0.5, folds=5, **deep))
    assert names == [f"attentive all cls+ap {folds} folds" for folds in (1, 5, 5)]


def test_a_digest_names_columns_of_its_own_cache_alone():
    rows = [
        *(made_row(0.5, setup=digit * 12) for digit in "12"),
        made_row(0.5, protocol="paper"),
        *(made_row(0.5, protocol=name, dataset="other", cache_key="b" * 12) for name in ("quick", "paper")),
    ]
    assert columns_of(*rows) == [
        *(f"linear last cls quick {digit * 12}" for digit in "12"),
        *(f"linear last cls {name}" for name in ("paper", "quick", "paper")),
    ]
