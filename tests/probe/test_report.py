"""Results side by side: what is one setting, what differs from what, how sure that is, and how it is written down."""

import csv
import html
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from featcache.cli.probe_table import rows_table
from featcache.probing.published import published_dataset, published_model, published_score
from featcache.probing.report.columns import column_names
from featcache.probing.report.groups import clip, filter_rows, group_rows, repetitions
from featcache.probing.report.numbers import number
from featcache.probing.report.pivot import pivot_differences, pivot_scores
from featcache.probing.report.reference import TRAINED_PROBE, Reference, parse_reference
from featcache.probing.report.significance import holm, mean_interval, paired_p_value
from featcache.probing.report.tables import (
    FORMATS,
    Interval,
    Number,
    Table,
    to_csv,
    to_latex,
    to_markdown,
    to_records,
)
from featcache.probing.report.views import VIEWS, Against
from featcache.probing.requests.tables import PAPER, TableRow
from featcache.probing.results.rows import RESULTS_FILE, ResultRow, append_row, count_lines, read_rows
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.text import printable

from .result_rows import made_row, made_rows

BASE = [0.50, 0.52, 0.51]
ALL = {"layers": "all", "layer_names": ["0", "1", "final"], "tokens": ["cls", "ap"]}
ROWS = [
    *made_rows(BASE),
    *made_rows([0.60, 0.66, 0.63], **ALL),
    *made_rows([0.70, 0.71, 0.69], head="attentive", num_heads=6, **ALL),
]


def test_a_group_is_what_differs_in_seeds_alone():
    rows = [
        *ROWS,
        made_row(0.9, seed=1),
        *made_rows([0.4, 0.6], protocol="paper"),
        made_row(0.8, input="standard"),
    ]
    groups = group_rows(rows)
    assert [len(group.rows) for group in groups] == [3, 3, 3, 2, 1]
    assert groups[0].by_seed == {(0, 0): 0.50, (0, 1): 0.9, (0, 2): 0.51}, (
        "of two runs of a seed the last counts"
    )
    # Only the columns that would have one name are told apart, and by what differs.
    assert sorted(set(column_names(groups).values())) == [
        "attentive all cls+ap",
        "linear all cls+ap",
        "linear last cls l2 paper",
        "linear last cls l2 quick",
        "linear last cls standard quick",
    ]
    # What auto chooses is no setting: it may differ from seed to seed.
    auto = [
        made_row(0.5, seed=seed, head="auto", solver="auto", input=transform)
        for seed, transform in enumerate(("l2", "standard"))
    ]
    assert len(group_rows(auto)) == 1
    few = [made_row(0.5, shots=shots, folds=shots, draw=draw) for shots in (1, 5) for draw in range(3)]
    assert [len(group.by_seed) for group in group_rows(few)] == [3, 3]
    names = column_names(group_rows(few)).values()
    assert list(names) == ["linear last cls 1 shots", "linear last cls 5 shots"], "folds follow from shots"


def test_settings_that_no_field_shows_are_told_apart_all_the_same():
    rows = [
        *made_rows([0.5, 0.6], head="mlp", options={"hidden": 64}),
        *made_rows([0.7, 0.8], head="mlp", options={"hidden": 256, "num_layers": 3}),
        *made_rows([0.1, 0.2], setup="1" * 12),  # as of a protocol file that was changed under its name
        *made_rows([0.3, 0.4], setup="2" * 12),
    ]
    groups = group_rows(rows)
    assert [group.by_seed[0, 1] for group in groups] == [0.6, 0.8, 0.2, 0.4]
    assert list(column_names(groups).values()) == [
        "mlp last cls hidden 64",
        "mlp last cls hidden 256",
        f"linear last cls {'1' * 12}",
        f"linear last cls {'2' * 12}",
    ]
    assert all(
        summary_row[-3] is None
        for summary_row in VIEWS["summary"](groups[:1], Against(TRAINED_PROBE, [])).rows
    )


def test_seeds_of_one_draw_are_no_repetitions():
    scores = {(0, 0): 0.1, (0, 1): 0.3, (1, 0): 0.5, (1, 1): 0.7, (2, 0): 0.2, (2, 1): 0.2}
    assert repetitions(scores) == pytest.approx([0.2, 0.6, 0.2])
    assert repetitions({(0, 1): 0.3, (0, 0): 0.1}) == [0.1, 0.3], "one draw: the seeds are all there is"
    rows = [made_row(score, shots=5, draw=draw, seed=seed) for (draw, seed), score in scores.items()]
    (group,) = group_rows(rows)
    low, high = mean_interval([0.2, 0.6, 0.2]) or (0, 0)
    assert low < 0, "no share of samples is"
    assert group.interval == pytest.approx((0, high))
    # `featcache probe` says the same.
    columns, lines = rows_table(rows, grid=False)
    line = dict(zip(columns, lines[-1], strict=True))
    low, high = group.interval
    high = min(1.0, high)
    assert line["balanced acc [95 %]"] == (
        f"{100 * group.mean:.2f} ± {100 * group.deviation:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
    )
    assert line["top-1"] == f"{100 * group.mean:.2f} ± {100 * group.deviation:.2f}"


def test_a_score_that_only_some_have():
    rows = [
        made_row(0.5),
        made_row(0.4, dataset="other", target_kind="regression", metric="r2", scores={"r2": 0.4, "mse": 2.0}),
    ]
    assert [group.score for group in group_rows(rows)] == ["balanced_accuracy", "r2"]
    assert [group.first.dataset for group in group_rows(rows, "mse")] == ["other"]
    assert pivot_scores(group_rows(rows)).means == {}, "scores of different kinds have no mean"
    with pytest.raises(UnknownNameError, match="unknown score 'acc'"):
        group_rows(rows, "acc")


def test_significance_against_scipy():
    rng = np.random.default_rng(0)
    for size in (2, 3, 5, 20):
        first, second = rng.normal(size=(2, size))
        expected = stats.ttest_rel(first, second).pvalue
        assert paired_p_value(list(first - second)) == pytest.approx(expected, rel=1e-9)
        low, high = stats.t.interval(0.95, size - 1, first.mean(), stats.sem(first))
        assert mean_interval(list(first)) == pytest.approx((low, high), rel=1e-9)
    assert paired_p_value([0.1]) is None
    assert paired_p_value([0.1, 0.1, 0.1]) is None, "without spread there is nothing to test against"
    # Holm's own rule, by hand: 3 x 0.01, 2 x 0.03, and 0.06 may not fall below it.
    assert holm({"a": 0.03, "b": 0.01, "c": 0.04}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})


def test_differences_are_paired_and_corrected():
    groups = group_rows(ROWS)
    found = pivot_differences(groups[1:], groups, TRAINED_PROBE)
    (place,) = found.places
    linear, attentive = (
        found.cells[place, column] for column in ("linear all cls+ap", "attentive all cls+ap")
    )
    assert linear.mean == pytest.approx(0.12)
    assert attentive.best
    assert not linear.best
    raw = [
        stats.ttest_rel(np.array(scores), BASE).pvalue for scores in ([0.60, 0.66, 0.63], [0.70, 0.71, 0.69])
    ]
    smaller, larger = sorted(raw)
    assert sorted([linear.p_value, attentive.p_value]) == pytest.approx(
        [2 * smaller, max(2 * smaller, larger)]
    )
    with pytest.raises(RequestError, match="the results do not hold mlp on all, cls"):
        pivot_differences(groups, groups, Reference(TableRow("mlp", "all", "cls")))
    # Of another cache, nothing is the reference's match.
    other = group_rows(made_rows([0.5, 0.6], cache_key="b" * 12, **ALL))
    with pytest.raises(RequestError, match="no result can be compared with the trained linear probe"):
        pivot_differences(other, groups, TRAINED_PROBE)


def test_the_reference_is_the_one_trained_alike():
    few = [made_row(0.3, shots=5, seed=seed) for seed in range(2)]
    few += [made_row(0.4, shots=5, seed=seed, **ALL) for seed in range(2)]
    groups = group_rows([*ROWS, *few])
    found = pivot_differences(groups, groups, TRAINED_PROBE)
    (five,) = [cell for (_, name), cell in found.cells.items() if name == "linear all cls+ap 5 shots"]
    assert five.mean == pytest.approx(0.1)
    assert not any(cell.note for cell in found.cells.values())


def test_a_reference_has_as_many_shots():
    """Else a gain would be one of samples; another protocol is better than no reference, and said."""
    few = made_rows([0.3, 0.4], shots=5)
    groups = group_rows([*few, *made_rows([0.7, 0.8], head="attentive", **ALL)])
    with pytest.raises(
        RequestError,
        match="no result can be compared with the trained linear probe: same cache, score, number of shots and seeds",
    ):
        pivot_differences(groups, groups, TRAINED_PROBE)
    paper = made_rows([0.7, 0.8], head="attentive", protocol="paper", **ALL)
    groups = group_rows([*made_rows([0.5, 0.6]), *paper])
    note = "where the protocol paper has no reference, its runs are compared with that of the protocol quick"
    against = Against(TRAINED_PROBE, groups)
    assert note in VIEWS["gains"](groups, against).notes
    assert note in VIEWS["summary"](groups, against).notes


def test_the_last_layer_is_found_by_either_name():
    listed = made_rows([0.5, 0.6], layers="final")
    for layers, rows in (("last", listed), ("final", made_rows([0.5, 0.6])), ("final", listed)):
        groups = group_rows([*rows, *made_rows([0.7, 0.9], **ALL)])
        (cell,) = pivot_differences(
            groups, groups, Reference(TableRow("linear", layers, "cls"))
        ).cells.values()
        assert cell.mean == pytest.approx(0.25)


def test_a_score_without_end_has_no_spread():
    """As R2 has where a training diverged."""
    rows = made_rows([-float("inf"), 0.5], metric="r2")
    for row in rows:
        row.scores["r2"] = row.score
    (group,) = groups = group_rows(rows)
    assert (group.mean, group.deviation, group.interval) == (-float("inf"), None, None)
    assert "-inf" in VIEWS["summary"](groups, Against(TRAINED_PROBE, [])).cells()[0]


def test_less_is_better_of_a_likelihood():
    pivot = pivot_scores(group_rows(ROWS, "nll"))
    assert [name for (_, name), cell in pivot.cells.items() if cell.best] == ["attentive all cls+ap"]


def test_a_mean_over_datasets_is_over_those_that_have_all_columns():
    rows = [*ROWS, *[made_row(0.2, dataset="other", cache_key="c" * 12, **kind) for kind in ({}, ALL)]]
    pivot = pivot_scores(group_rows([row for row in rows if row.head == "linear"]))
    assert (pivot.complete, pivot.means["linear last cls"]) == (2, pytest.approx((0.51 + 0.2) / 2))
    assert pivot_scores(group_rows(rows)).means == {}, "one dataset alone has all three"


def test_filters():
    assert {row.head for row in filter_rows(ROWS, {"head": ["attentive"], "tokens": []})} == {"attentive"}
    assert len(filter_rows(ROWS, {"seed": ["0", "2"], "tokens": ["cls+ap"]})) == 4
    with pytest.raises(UnknownNameError, match="unknown head 'atentive'; did you mean attentive"):
        filter_rows(ROWS, {"head": ["atentive"]})
    with pytest.raises(RequestError, match="no result has head attentive, layers last together"):
        filter_rows(ROWS, {"head": ["attentive"], "layers": ["last"]})


NASTY = r"50%_of a & b #1 {x} ~^\ |*"


def test_formats_say_the_same():
    numbers = [Number(12.346, 0.5, 0.004, signed=True, best=True), Number(-0.001, signed=True)]
    table = Table(
        ("name", "score", "n"), [[NASTY, numbers[0], 1234], ["plain", numbers[1], None]], ["* a note"]
    )
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    assert rows[0] == {"name": NASTY, "score": "12.346", "score sd": "0.5", "score p": "0.004", "n": "1234"}
    assert rows[1]["score sd"] == rows[1]["n"] == ""
    assert table.cells() == [[NASTY, "+12.35 ± 0.50 **", "1,234"], ["plain", "+0.00", ""]], "nothing is -0.00"
    lines = to_markdown(table).splitlines()
    assert lines[1] == "| --- | ---: | ---: |"
    assert lines[2].count(" | ") == 2, "a bar in a name is no border"
    assert r"**+12.35 ± 0.50 \*\***" in lines[2]
    latex = to_latex(table)
    assert (
        r"50\%\_of a \& b \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \textbar{}*" in latex
    )
    assert r"$\mathbf{+12.35} \pm 0.50^{**}$" in latex
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == 2
    records = json.loads(json.dumps(to_records(table)))
    assert records[0]["score"] == {"value": 12.346, "sd": 0.5, "p": 0.004}
    assert records[1]["score"] == {"value": -0.001, "sd": None, "p": None}, "of one type, whatever is known"
    bounds = Table(("interval",), [[Interval(Number(79.2), Number(85.5))]])
    assert to_records(bounds) == [{"interval": [79.2, 85.5]}]
    assert bounds.cells() == [["79.20 – 85.50"]]


def test_every_view_has_the_columns_it_says():
    rows = [
        *ROWS,
        *made_rows(
            BASE,
            model="clip-vit-b-16",
            dataset="dtd",
            cache_key="d" * 12,
            test_samples=1880,
            protocol="paper",
        ),
    ]
    groups = group_rows(rows)
    for name, view in VIEWS.items():
        table = view(groups, Against(TRAINED_PROBE, groups))
        assert table.rows, name
        assert {len(row) for row in table.rows} == {len(table.columns)}, name
    with pytest.raises(
        RequestError, match="a reference is trained, solved, best-layer or HEAD:LAYERS:TOKENS"
    ):
        parse_reference("linear:last")


def test_published_scores():
    """Every backbone and dataset is found under the names that people use, and every row of the paper's table is one of ours."""
    assert published_score("clip-vit-b-16", "CIFAR-10", "linear", "last", ["cls"]) == pytest.approx(0.9438)
    assert published_score(
        "clip-vit-b-16", "CIFAR-10", "attentive", "last", ["cls", "patches"]
    ) == pytest.approx(0.9596)
    assert published_score("clip-vit-b-16", "CIFAR-10", "attentive", "all", ["ap", "cls"]) == pytest.approx(
        0.9641
    )
    assert published_score("clip-vit-b-16", "CIFAR-10", "attentive", "all", ["ap"]) is None
    for row in PAPER:
        assert published_score("clip-vit-b-16", "DTD", row.head, row.layers, row.tokens.split("+")), row
    from featcache.extraction.models.names import model_names

    known = (
        "clip-vit-b-32",
        "clip-vit-b-16",
        "clip-vit-l-14",
        "dinov2-vit-s-14",
        "augreg-vit-b-16",
        "augreg-vit-l-16",
    )
    for model in known:
        assert {published_model(name) for name in model_names(model)} == {model}
    for size in ("B-32", "B-16", "L-14"):
        assert published_model(f"open_clip:ViT-{size}/openai") == f"clip-vit-{size.lower()}"
        assert published_model(f"open_clip:ViT-{size}/laion400m_e32") is None
    assert published_model("mae-vit-b-16") is None, "its scores are not in the paper's table"
    for name in ("flowers", "Flowers", "imagefolder:flowers"):
        assert published_dataset(name).name == "Flowers"
    assert published_dataset("voc2007").name == published_dataset("PASCAL VOC 2007").name == "PASCAL VOC 2007"
    assert published_dataset("textile") is None


def test_next_to_the_published_scores():
    paper = {"model": "vit-l-14", "dataset": "dtd", "protocol": "paper"}
    table = VIEWS["published"](
        group_rows(made_rows([0.70, 0.72], test_samples=50, **paper)), Against(TRAINED_PROBE, [])
    )
    ((dataset, model, *_, ours, theirs, difference, _, _),) = table.rows
    assert (dataset, model, ours.value) == ("DTD", "clip-vit-l-14", pytest.approx(71))
    assert difference.value == pytest.approx(71 - theirs.value)
    assert table.notes == [
        "dtd: the train split here has 100 samples, the paper's 1,880",
        "dtd: the test split here has 50 samples, the paper's 1,880",
        "clip-vit-l-14: preprocessing as in the published runs",
        "vit-l-14: QuickGELU here, as CLIP was trained; GELU in the published runs",
        "the published runs are those of the protocol paper-parity",
    ]
    heads = {**ALL, "head": "attentive", "num_heads": 3}
    otherwise = [
        made_row(0.5, **paper, **how)
        for how in ({"shots": 5}, {"input": "standard"}, {"solver": "exact"}, heads)
    ]
    with pytest.raises(RequestError, match="no result has a backbone"):
        VIEWS["published"](group_rows(otherwise), Against(TRAINED_PROBE, []))
    with pytest.raises(RequestError, match="no result has a backbone, a dataset and a head"):
        VIEWS["published"](group_rows(ROWS), Against(TRAINED_PROBE, []))


def test_the_published_runs_are_found_as_they_were_made():
    """With GELU, and with the paper's number of attention heads: one for each token, eight with patches."""
    theirs = {"model": "open_clip:ViT-B-16/openai", "dataset": "dtd", "protocol": "paper-parity"}
    theirs |= {"head": "attentive", "train_samples": 1880, "test_samples": 1880}
    patches = {"num_heads": 8, "layer_names": ["final"], "tokens": ["cls", "patches"]}
    rows = [made_row(0.5, **theirs, **ALL, num_heads=6), made_row(0.5, **theirs, **patches)]
    table = VIEWS["published"](group_rows(rows), Against(TRAINED_PROBE, []))
    assert [row[1] for row in table.rows[:-1]] == 2 * ["clip-vit-b-16"]
    assert table.notes == ["clip-vit-b-16: preprocessing as in the published runs"]
    ours = theirs | {"model": "clip-vit-b-16"}
    both = VIEWS["published"](
        group_rows([rows[1], made_row(0.6, **ours, **patches)]), Against(TRAINED_PROBE, [])
    )
    assert [row[1] for row in both.rows[:-1]] == ["open_clip:ViT-B-16/openai", "clip-vit-b-16"], "told apart"
    assert len(both.notes) == 2


def test_rows_that_are_none_are_passed_over(tmp_path):
    good = made_row(0.5).to_dict()
    bad = [
        {"seed": "0"},
        {"scores": [1]},
        {"scores": {"balanced_accuracy": "high"}},
        {"tokens": "cls"},
        {"layer_names": [None]},
        {"folder": "../elsewhere"},
        {"folder": "/etc"},
        {"surprise": 1},
        {"kept_layers": [1]},
        {"score_interval": [0.1]},
        {"score_interval": [0.1, None]},
        {"settings": {"k": "5"}},
        {"settings": []},
        {"scores": {"top1": 10**400}},
        {"parameters": 10**400},
        {"model": "\ud800"},
        # Of every field, a value of another type.
        *(
            {name: [] if isinstance(value, dict) else {}}
            for name, value in good.items()
            if name != "settings"
        ),
    ]
    lines = [*(json.dumps({**good, **changes}) for changes in bad), "[]", '{"torn', "[" * 100_000]
    (tmp_path / "results.jsonl").write_text("\n".join([json.dumps(good), *lines, ""]))
    assert read_rows(tmp_path) == [made_row(0.5)]
    assert count_lines(tmp_path) == len(lines) + 1
    early = {name: value for name, value in good.items() if name not in ("setup", "options")}
    assert ResultRow.from_dict(early) is not None, "fields that came later are not missed"


def test_results_import_nothing_heavy():
    code = "import sys, featcache.cli.results; assert not {'torch', 'sklearn', 'matplotlib', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


HOSTILE = (
    *(
        "a|b",
        "a\\|b",
        "ends with \\",
        "<script>x</script>",
        "<b>",
        "&lt;",
        "_x_ *y* `z`",
        "[x](y)",
        "$x$ ~~z~~",
        "# 1",
        "![i](u)",
    ),
    *("[1cm]", "*", "a--b", "50% & #1 {y} ^ ~", "x\ny", "\x1b[31m", "猫 \u202e"),
)


def _rendered(cell: str) -> str:
    """A cell as CommonMark shows it: escapes and entities are resolved, and no markup is left."""
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]|~$#!<>{}]", re.sub(r"\\(.)", "", cell)), cell
    return html.unescape(re.sub(r"\\(.)", r"\1", cell))


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_names_as_they_are(name):
    table = Table((name, "n"), [[name, 1]], [name])
    lines = to_markdown(table).splitlines()
    for line in (lines[0], lines[2]):
        cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)
        assert len(cells) == 4, line
        assert _rendered(line[2:].rsplit(" | ", 1)[0]) == printable(name)
    assert _rendered(lines[4]) == printable(name)


@pytest.mark.parametrize("name", HOSTILE)
def test_latex_prints_names_as_they_are(name):
    lines = to_latex(Table((name, "n"), [[name, 1]], [name])).splitlines()
    assert lines[0] == f"% {printable(name)}"
    (row, _), (heading, _) = (lines[-3].rsplit(" & ", 1), lines[4].rsplit(" & ", 1))
    assert row == heading
    assert not row.startswith(("[", "*")), "the line break before it would take that"
    back = {
        **{rf"\text{word}{{}}": one for word, one in zip(("asciitilde", "asciicircum", "backslash", "bar", "less", "greater"), "~^\\|<>", strict=True)},
        **{f"\\{one}": one for one in "&%$#_{}"},
        **{"{[}": "[", "{*}": "*", "-{}": "-"},
    }  # fmt: skip
    found = re.sub("|".join(map(re.escape, back)), "", row)
    assert not re.search(r"[&%$#_{}~^\\|<>\[]|--", found), row
    assert re.sub("|".join(map(re.escape, back)), lambda match: back[match[0]], row) == printable(name)


def test_tables_for_programs_keep_the_digits():
    exact = 100 / 3
    table = Table(
        ("score", "interval"),
        [[Number(exact, 1e-7 / 3), Interval(Number(exact), Number(200 / 3))], [Number(100 * 0.57), None]],
    )
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    assert float(rows[0]["score"]) == pytest.approx(exact, rel=1e-14)
    assert float(rows[0]["score sd"]) == pytest.approx(1e-7 / 3, rel=1e-14)
    assert [float(end) for end in rows[0]["interval"].split(" – ")] == pytest.approx(
        [exact, 200 / 3], rel=1e-14
    )
    assert rows[1]["score"] == "57"


def test_small_errors_are_not_shown_as_nothing():
    """Errors are in the unit of the targets, which may be metres for what is measured in micrometres."""
    assert [number("mse", value).text for value in (0.0, 1.5, 0.00012344, 1.2344e-9)] == [
        "0.0000",
        "1.5000",
        "0.0001234",
        "0.000000001234",
    ]
    assert number("top1", 0.123456).text == "12.35"


def test_lines_that_others_left_hide_no_row(tmp_path):
    """Editors, killed runs and earlier versions: what is a row is read, and what is none is counted."""
    good = [json.dumps(made_row(0.5, seed=seed).to_dict()) for seed in range(3)]
    text = "\n".join(good) + "\n"
    path = tmp_path / RESULTS_FILE
    for content, unread in (
        (b"\xef\xbb\xbf" + text.encode(), 0),
        (text.replace("\n", "\r\n").encode(), 0),
        (b"\n\n" + text.encode() + b"\n", 0),
        (text.encode() + good[0][:200].encode(), 1),
        (b"\xff\xfe\x00\n" + text.encode(), 1),
        (b"[1, 2]\n" + b"[" * 100_000 + b"\n" + text.encode(), 2),
        (b'{"seed": ' + b"9" * 5000 + b"}\n" + text.encode(), 1),
    ):
        path.write_bytes(content)
        assert [row.seed for row in read_rows(tmp_path)] == [0, 1, 2], content[:20]
        assert count_lines(tmp_path) - 3 == unread, content[:20]


def test_scores_that_are_no_numbers_have_no_value(tmp_path):
    """Version 0.1.0 wrote NaN for the scores of a training that diverged."""
    document = made_row(0.5).to_dict()
    document["scores"]["nll"] = float("nan")
    text = json.dumps(document) + "\n" + json.dumps(document).replace("NaN", "1e999") + "\n"
    (tmp_path / RESULTS_FILE).write_text(text)
    assert [row.scores["nll"] for row in read_rows(tmp_path)] == [None, None]
    append_row(tmp_path, read_rows(tmp_path)[0])
    last = (tmp_path / RESULTS_FILE).read_text().splitlines()[-1]
    assert json.loads(last, parse_constant=pytest.fail)["scores"]["nll"] is None


def test_a_head_that_no_seed_changes_has_no_interval():
    """Its runs are alike, which is not to say that the score is sure."""
    (group,) = group_rows(made_rows([0.9, 0.9, 0.9], solver="closed"))
    assert (group.alike, group.interval, group.deviation) == (True, None, None)
    shown = to_records(VIEWS["summary"]([group], Against(TRAINED_PROBE, [group])))
    table = VIEWS["summary"]([group], Against(TRAINED_PROBE, [group]))
    assert shown[0]["95 % over seeds"] is None, "words are for people: programs expect a pair or nothing"
    assert all("all runs alike" in write(table) for write in FORMATS.values())
    _, lines = rows_table(made_rows([0.9, 0.9, 0.9], solver="closed"), grid=False)
    assert "90.00, all alike" in lines[-1]
    (alone,) = group_rows(made_rows([0.9]))
    assert not alone.alike


@pytest.mark.parametrize(
    ("score", "given", "cut"),
    [
        ("balanced_accuracy", (-0.2, 1.3), (0, 1)),
        ("r2", (-3.0, 1.2), (-3, 1)),
        ("spearman", (-1.5, 1.2), (-1, 1)),
        ("nll", (-0.5, 7.0), (0, 7)),
    ],
)
def test_intervals_are_cut_at_both_ends(score, given, cut):
    assert clip(score, given) == cut
