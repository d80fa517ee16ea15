"""Tables and figures say how sure their numbers are, over test images and over seeds, and what differs between their columns."""

import json
from dataclasses import replace

import numpy as np
import pytest

from featcache.cli.probe_table import edge_notes, interval_notes, rows_table
from featcache.probing.plots.collect import draw
from featcache.probing.report.groups import group_rows
from featcache.probing.report.paired_images import PairedImages
from featcache.probing.report.pivot import differences
from featcache.probing.report.reference import SOLVED_PROBE, TRAINED_PROBE, parse_reference
from featcache.probing.report.tables import to_csv, to_latex, to_markdown, to_records
from featcache.probing.report.views import TIES, VIEWS, Against
from featcache.probing.results.predictions import PREDICTIONS_FILE, save_predictions
from featcache.store.errors import CacheError, RequestError

from .result_rows import made_row

CLASSES = 3
LABELS = np.arange(90) % CLASSES
SOLVED = {"head": "logreg", "solver": "exact", "penalty_kind": "l2", "protocol": "paper"}
ALL = {"layers": "all", "layer_names": ["1", "final"], "tokens": ["cls", "ap"]}


def kept_row(folder, name, wrong, **changes):
    """A row with its predictions beside it, of which those at `wrong` are wrong."""
    predicted = LABELS.copy()
    predicted[list(wrong)] = (LABELS[list(wrong)] + 1) % CLASSES
    score = float(np.mean([(predicted == LABELS)[label == LABELS].mean() for label in range(CLASSES)]))
    (folder / name).mkdir(parents=True, exist_ok=True)
    ids = [f"image{index}" for index in range(len(LABELS))]
    outputs = np.eye(CLASSES, dtype=np.float32)[predicted]
    save_predictions(folder / name / PREDICTIONS_FILE, ids, LABELS, outputs, ["a", "b", "c"])
    row = made_row(score, folder=name, test_samples=90, run=name.ljust(12, "0"), **changes)
    return replace(row, score_interval=(score - 0.05, score + 0.04))


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def groups(folder):
    rows = [
        kept_row(folder, "trained", range(40)),
        kept_row(folder, "solved", range(20), **SOLVED),
        kept_row(folder, "near", [*range(18), 30], head="attentive", **ALL),
        kept_row(folder, "best", range(2), head="ridge", solver="closed", input="standard", **ALL),
        kept_row(folder, "close", range(3), head="lda", solver="closed", **ALL),
    ]
    return group_rows(rows)


def test_the_summary_has_gains_over_both_probes_with_intervals(groups, folder):
    table = VIEWS["summary"](groups, Against(SOLVED_PROBE, groups, PairedImages(folder)))
    assert "test n" in table.columns
    records = {record["head"]: record for record in to_records(table)}
    near = records["attentive"]["over solved"]
    assert near["value"] == pytest.approx(100 / 90)
    assert near["low"] < 0 < near["high"]
    assert near["p"] == pytest.approx(1.0), "two images for it and one against it"
    assert records["ridge"]["over solved"]["p"] < 0.001
    assert records["ridge"]["over trained"]["value"] == pytest.approx(100 * 38 / 90)
    assert records["logreg"]["over solved"] is None
    assert records["ridge"]["95 % over test images"] == pytest.approx(
        [100 * (88 / 90 - 0.05), 100 * (88 / 90 + 0.04)]
    )
    assert {record["input"] for record in records.values()} == {"l2", "standard"}, "what differs is shown"
    assert {record["protocol"] for record in records.values()} == {"quick", "paper"}
    assert any("same test images" in note for note in table.notes)


def test_p_values_are_corrected_for_all_comparisons(groups, folder):
    images = PairedImages(folder)
    solved = next(group for group in groups if group.first.head == "logreg")
    alone = images.compare(next(group for group in groups if group.first.head == "linear"), solved)
    table = VIEWS["gains"](groups, Against(SOLVED_PROBE, groups, images))
    (row,) = to_records(table)
    assert row["linear last cls"]["p"] == pytest.approx(4 * alone.p_value), "of four comparisons"
    assert any(note.startswith("columns differ in input: l2: ") for note in table.notes)
    assert "test images: made 90" in table.notes


def test_ties_with_the_best_are_marked(groups, folder):
    table = VIEWS["pivot"](groups, Against(SOLVED_PROBE, groups, PairedImages(folder)))
    assert TIES in table.notes
    latex, markdown = to_latex(table), to_markdown(table)
    assert r"\mathbf{97.78}" in latex
    assert r"\underline{96.67}" in latex
    assert latex.count("underline{") == 1, "the others are worse"
    assert "| *96.67 " in markdown
    header, line = to_csv(table).splitlines()[:2]
    assert "lda all cls+ap low" in header
    assert line.count(",") == header.count(",")
    without = VIEWS["pivot"](groups, Against(SOLVED_PROBE, groups))
    assert "underline{" not in to_latex(without)


def test_seeds_and_images_both_have_to_agree(folder):
    """A star needs both tests, where both can be made: three seeds that agree say nothing of other images."""
    rows = []
    for seed in range(3):
        rows.append(kept_row(folder, f"solved{seed}", range(20), seed=seed, **SOLVED))
        rows.append(kept_row(folder, f"head{seed}", range(1, 20 - (seed == 1)), head="mlp", seed=seed, **ALL))
    groups = group_rows(rows)
    over_seeds = VIEWS["gains"](groups, Against(SOLVED_PROBE, groups))
    both = VIEWS["gains"](groups, Against(SOLVED_PROBE, groups, PairedImages(folder)))
    (seeds,), (joined,) = to_records(over_seeds), to_records(both)
    assert seeds["mlp all cls+ap"]["p"] < 0.1
    assert joined["mlp all cls+ap"]["p"] > 0.4


def test_predictions_that_are_missing_or_damaged(groups, folder):
    images = PairedImages(folder)
    (folder / "best" / PREDICTIONS_FILE).unlink()
    table = VIEWS["gains"](groups, Against(SOLVED_PROBE, groups, images))
    (row,) = to_records(table)
    assert "low" not in row["ridge all cls+ap"]
    assert "low" in row["lda all cls+ap"]
    assert any("ridge all cls+ap: no predictions" in note for note in table.notes)
    (folder / "close" / PREDICTIONS_FILE).write_bytes(b"sample_id,label,predicted,probability\n\xff\n")
    with pytest.raises(CacheError, match=r"predictions\.csv is damaged"):
        VIEWS["gains"](groups, Against(SOLVED_PROBE, groups, PairedImages(folder)))


def test_an_interval_without_width_is_of_an_earlier_version():
    row = made_row(0.7, score_interval=[0.7, 0.7])
    (group,) = group_rows([row])
    assert group.image_interval is None
    _, (line,) = rows_table([row], grid=False)
    assert "70.00" in line
    assert interval_notes([made_row(0.7, score_interval=[0.6, 0.8])]) == [
        "[95 %]: over other test images, of which there are 50"
    ]


def test_references_by_name():
    assert parse_reference(None) == parse_reference("solved") == SOLVED_PROBE
    assert parse_reference("trained") == TRAINED_PROBE
    regression = {"target_kind": "regression", "metric": "r2", "solver": "closed", "head": "ridge"}
    (ridge,) = group_rows([made_row(0.4, scores={"r2": 0.4}, **regression)])
    (logreg,) = group_rows([made_row(0.4, **SOLVED)])
    (lasso,) = group_rows([made_row(0.4, **{**SOLVED, "penalty_kind": "group-lasso"})])
    (of_classes,) = group_rows([made_row(0.4, head="ridge", solver="closed")])
    assert [SOLVED_PROBE.matches(group) for group in (ridge, logreg, lasso, of_classes)] == [
        True,
        True,
        False,
        False,
    ]
    (patches,) = group_rows([made_row(0.9, **{**SOLVED, "tokens": ["patches"]})])
    assert not SOLVED_PROBE.matches(patches)
    best = parse_reference("best-layer")
    (group,) = group_rows([made_row(0.4, head="best-layer", solver="layer", layers="1,final")])
    assert best.matches(group)
    with pytest.raises(RequestError, match="`featcache probe --head linear --baselines solved` adds it"):
        VIEWS["gains"]([ridge], Against(SOLVED_PROBE, []))


def test_the_class_token_is_the_baseline_wherever_there_is_one(folder):
    average = kept_row(folder, "average", range(1), **{**SOLVED, "tokens": ["ap"]})
    solved = kept_row(folder, "solved", range(20), **SOLVED)
    best = kept_row(folder, "best", range(10), head="attentive", **ALL)
    found = differences(
        group_rows([average, solved, best]), group_rows([average, solved, best]), SOLVED_PROBE
    )
    assert sorted(round(cell.mean, 4) for cell in found.values())[0] == pytest.approx(
        best.score - solved.score, abs=1e-3
    )


def test_the_edge_of_a_sweep_is_noted_once_for_heads_that_matter():
    rates = (0.1, 0.01, 0.001)
    rows = [made_row(0.5, learning_rate=0.1, gain_over_solved=-0.1)]
    rows += [made_row(0.6, learning_rate=0.1, seed=seed, gain_over_solved=0.1, **ALL) for seed in range(3)]
    rows.append(made_row(0.6, head="mlp", learning_rate=0.1, gain_over_solved=0.1, **ALL))
    assert edge_notes(rows, rates) == [
        "the largest learning rate of the sweep, 0.1, was chosen by linear on all, cls+ap; mlp on all, cls+ap: "
        "they may not have converged"
    ]
    assert edge_notes([made_row(0.5, learning_rate=0.001)], rates) == [
        "the smallest learning rate of the sweep, 0.001, was chosen by linear on last, cls: a smaller one may be better"
    ]
    assert edge_notes(rows, (0.1,)) == []


def test_figures_have_the_intervals(groups, folder):
    ((_, figure),) = draw("gains", folder, groups, Against(SOLVED_PROBE, groups, PairedImages(folder)))
    assert "thin lines: 95 % over test images" in figure.get_suptitle()
    assert "test images: made 90" in figure.get_suptitle()
    lines = [line for line in figure.axes[0].collections if line.get_linewidth()[0] == 0.7]
    ends = [tuple(segment[:, 0]) for line in lines for segment in line.get_segments()]
    assert len(ends) == 4
    assert any(low < 0 < high for low, high in ends)
    assert all(high > low for low, high in ends)
    ((_, figure), *_) = draw("calibration", folder, groups, Against(SOLVED_PROBE, groups))
    assert "95 % over test images" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_rows_with_intervals_read_back(folder):
    from featcache.probing.results.rows import append_row, read_rows

    row = made_row(0.5, score_intervals={"top1": [0.4, 0.6]}, gain_over_solved=0.1)
    append_row(folder, row)
    assert read_rows(folder) == [row]
    for bad in ({"top1": [0.4]}, {"top1": "no"}, {"top1": [0.4, None]}, [0.1]):
        document = {**json.loads(json.dumps(row.to_dict())), "score_intervals": bad}
        assert type(row).from_dict(document) is None
