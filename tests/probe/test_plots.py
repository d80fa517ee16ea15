"""Plots: what is drawn is what was measured; the same numbers give the same files."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from featcache.probing.plots.attention import MAX_CLASSES, attention_by_class_figure, attention_figure
from featcache.probing.plots.calibration import reliability
from featcache.probing.plots.collect import KINDS, draw
from featcache.probing.plots.curves import curves_figure
from featcache.probing.plots.gains import gains_figure
from featcache.probing.plots.shots import ShotsPoint, shots_figure
from featcache.probing.plots.style import AMOUNTS, MARKERS, PALETTE, save
from featcache.probing.plots.sweep import sweep_figure
from featcache.probing.report.groups import group_rows
from featcache.probing.report.pivot import pivot_differences
from featcache.probing.report.reference import TRAINED_PROBE, parse_reference
from featcache.probing.report.views import Against
from featcache.probing.results.records import (
    SweepRecord,
    SweepTrial,
    read_curve,
    read_sweep,
    save_curve,
    save_sweep,
)
from featcache.probing.scoring.metrics import calibration_error
from featcache.store.errors import CacheError

from .result_rows import made_row, made_rows

ALL = {"layers": "all", "layer_names": ["0", "1", "final"], "tokens": ["cls", "ap"]}


def test_the_style_is_read_without_colour():
    """Categories differ in lightness or marker; amounts get darker all the way."""
    from matplotlib import colormaps

    grey = [
        float(np.dot(colormaps[AMOUNTS](value)[:3], (0.299, 0.587, 0.114))) for value in np.linspace(0, 1, 50)
    ]
    assert all(before > after for before, after in pairwise(grey))
    assert len({*PALETTE}) == len(PALETTE) == len({*MARKERS})
    assert min(float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) for colour in PALETTE) < 0.1


def test_gains_are_where_they_belong_and_files_are_the_same_again(tmp_path):
    rows = []
    for dataset, lift in (("one", 0.1), ("two", -0.05)):
        place = {"dataset": dataset, "cache_key": dataset * 4}
        rows += made_rows([0.50, 0.54], **place) + made_rows([0.51 + lift, 0.53 + lift], **ALL, **place)
    groups = group_rows(rows)
    figure = gains_figure(pivot_differences(groups, groups, TRAINED_PROBE), "a title", "linear")
    (axes,) = figure.axes
    (drawn,) = [container[0].get_xdata() for container in axes.containers]
    np.testing.assert_allclose(
        np.asarray(drawn, float), [10, -5, 2.5], atol=1e-9
    )  # two datasets and their mean
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two", "mean"]
    first = {path.suffix: path.read_bytes() for path in save(figure, tmp_path / "plot")}
    again = {
        path.suffix: path.read_bytes()
        for path in save(
            gains_figure(pivot_differences(groups, groups, TRAINED_PROBE), "a title", "linear"),
            tmp_path / "plot",
        )
    }
    assert first == again
    assert {*first} == {".png", ".svg"}
    assert b"linear all cls+ap" in first[".svg"]
    dollars = save(
        gains_figure(pivot_differences(groups, groups, TRAINED_PROBE), "of $a_$ and $b", "linear"),
        tmp_path / "dollars",
        (".svg",),
    )
    assert b"of $a_$ and $b" in dollars[0].read_bytes()


def look(container) -> tuple[object, ...]:
    """How a series looks without its colours, and in them."""
    line = container[0]
    shape = line.get_marker(), line.get_fillstyle(), to_rgb(line.get_markerfacecolor()) == (1, 1, 1)
    return (*shape, line.get_linestyle(), line.get_color())


def test_no_two_series_look_alike(tmp_path):
    """As many as 28, whether heads or layer sets are many, and a legend that shows all."""
    few = [made_row(0.5, head=f"head{index}", shots=shots) for index in range(28) for shots in (1, 5)]
    groups = group_rows(few)
    ((_, shots),) = draw("shots", tmp_path, groups, Against(parse_reference(None), groups))
    figures = [shots]
    for heads, layers in ((28, 1), (14, 2), (1, 28), (4, 10)):
        many = [
            made_row(0.6, head=f"head{head}", layers=f"{layer},final")
            for head in range(heads)
            for layer in range(layers)
        ]
        groups = group_rows([made_row(0.5), *many])
        figures.append(gains_figure(pivot_differences(groups, groups, TRAINED_PROBE), "a title", "linear"))
    for figure in figures:
        (axes,) = figure.axes
        looks = {look(container) for container in axes.containers}
        assert len(looks) == len(axes.containers) >= 28
        figure.canvas.draw()
        (legend,) = figure.legends
        assert legend.get_window_extent().height <= figure.bbox.height


def test_gains_say_of_what_and_over_what(tmp_path):
    rows = [*made_rows([0.50, 0.54]), *made_rows([0.60, 0.68], **ALL)]
    rows += made_rows([0.7, 0.9], head="attentive", protocol="paper", **ALL)
    labels, drawn = [], []
    for score, text in (("main", "trained"), ("nll", "trained"), ("main", "linear:all:cls+ap")):
        groups = group_rows(rows, score)
        ((_, figure),) = draw("gains", tmp_path, groups, Against(parse_reference(text), groups))
        labels.append(figure.axes[0].get_xlabel())
        drawn.append(float(figure.axes[0].containers[0][0].get_xdata()[0]))
        assert "the protocol paper has no reference" in figure.get_suptitle()
    assert labels == [
        "points over the trained linear probe",
        "difference from the trained linear probe; less is better",
        "points over linear on all, cls+ap",
    ]
    np.testing.assert_allclose(drawn, [12, -0.12, -12])


def test_of_many_classes_those_are_shown_that_differ(tmp_path):
    rng = np.random.default_rng(0)
    weights = np.full((60, 4, 2), 1 / 8) + rng.uniform(0, 0.001, (60, 4, 2))
    odd = rng.permutation(60)[:MAX_CLASSES]
    weights[odd, 0, 0] += 0.3
    weights[5] = np.nan  # no images
    odd = sorted(set(odd) - {5})
    figure = attention_by_class_figure(
        weights, ["0", "1", "2", "final"], ["cls", "ap"], [f"class {i}" for i in range(60)], "t"
    )
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {f"class {label}" for label in odd} <= set(shown)
    assert len(shown) == MAX_CLASSES
    assert "class 5" not in shown


def test_reliability_agrees_with_the_score():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=generator)
    labels = torch.randint(4, (500,), generator=generator)
    probability, predicted = logits.double().softmax(1).max(1)
    found = reliability(probability.numpy(), (predicted == labels).numpy())
    assert found.counts.sum() == 500
    assert found.expected_error == pytest.approx(calibration_error(logits, labels), abs=1e-12)


def sweep(**values: list[float]) -> SweepRecord:
    names = list(values)
    settings = np.stack(np.meshgrid(*values.values(), indexing="ij"), -1).reshape(-1, len(names))
    trials = [
        SweepTrial(dict(zip(names, row.tolist(), strict=True)), 0.5 + 0.01 * index)
        for index, row in enumerate(settings)
    ]
    return SweepRecord("balanced_accuracy", trials, len(trials) - 1)


def test_a_sweep_is_a_grid():
    record = sweep(dropout=[0.0, 0.1], learning_rate=[0.1, 0.01], weight_decay=[1e-6, 1e-2, 1.0])
    panels = [axes for axes in sweep_figure(record, "t").axes if axes.images and axes.get_xlabel()]
    assert [axes.get_title(loc="left") for axes in panels] == ["dropout 0", "dropout 0.1"]
    # Learning rates down, the largest first; weight decays across.
    np.testing.assert_allclose(panels[0].images[0].get_array(), [[50, 51, 52], [53, 54, 55]])
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["0.1", "0.01"]
    assert [len(axes.patches) for axes in panels] == [0, 1], "the chosen one has a frame"
    path = sweep_figure(sweep(penalty=[1e-3, 1e-1, 1e1]), "t").axes[0]
    assert (path.get_xscale(), path.get_xlabel()) == ("log", "penalty")


def test_records_come_back(tmp_path):
    record = sweep(learning_rate=[0.1, 0.01])
    save_sweep(tmp_path, record)
    found = read_sweep(tmp_path)
    assert [(dict(t.settings), t.validation) for t in found.trials] == [
        (dict(t.settings), t.validation) for t in record.trials
    ]
    (tmp_path / "sweep.json").write_text('{"score": "x", "chosen": 7, "trials": []}')
    with pytest.raises(CacheError, match="field 'chosen' is none of the trials"):
        read_sweep(tmp_path)
    # A curve is short whatever the training was, keeps its mean, and a loss that is no number is none.
    losses = [float(i) for i in range(1003)]
    save_curve(tmp_path, losses)
    updates, means = read_curve(tmp_path)
    assert len(updates) <= 200
    assert updates[-1] == 1003
    assert np.average(means, weights=np.diff([0, *updates])) == pytest.approx(np.mean(losses))
    save_curve(tmp_path, [float("inf"), 1.0])
    assert np.isnan(read_curve(tmp_path)[1][0])
    assert read_sweep(tmp_path / "elsewhere") is None


def test_what_a_run_does_not_have_is_not_drawn(tmp_path: Path):
    few = [
        made_row(score, shots=shots, draw=draw) for shots, score in ((1, 0.3), (5, 0.5)) for draw in range(2)
    ]
    few += [made_row(0.6, shots=5, draw=draw, protocol="paper") for draw in range(2)]
    groups = group_rows([*made_rows([0.5, 0.6]), *few])
    against = Against(parse_reference(None), groups)
    names = [name for kind in KINDS for name, _ in draw(kind, tmp_path, groups, against)]
    assert names == ["shots-made-tiny"]
    ((_, figure),) = draw("shots", tmp_path, groups, against)
    # A head keeps its name, and its line, from one number of shots to the next.
    lines = [container[0].get_xydata() for container in figure.axes[0].containers]
    np.testing.assert_allclose(lines[0], [[1, 30], [5, 50]])
    np.testing.assert_allclose(lines[1], [[5, 60]])
    picture = np.asarray(Image.open(save(figure, tmp_path / "shots")[0]).convert("L"))
    assert picture.min() < 100 < picture.max()


def _svg(figure, path: Path) -> str:
    return save(figure, path, [".svg"])[0].read_text()


@pytest.mark.parametrize("penalties", [[1e-5, 1e-3, 1e2], [3e-7, 2e-6, 9e4], [0.5, 2.0, 40.0]])
def test_logarithmic_axes_have_plain_numbers(tmp_path, penalties):
    """The style shows text as it is, so matplotlib's formulas would be seen as such."""
    drawn = _svg(sweep_figure(sweep(penalty=penalties), "a_b $x$ {y} % 猫"), tmp_path / "sweep")
    drawn += _svg(curves_figure({(0, 0): ([1, 2, 3], [1e-5, 2.0, 3e3])}, "a_b $x$"), tmp_path / "curve")
    points = [ShotsPoint(shots, 50.0, None) for shots in (1, 5, 1000)]
    drawn += _svg(shots_figure({"a_b $x$": points}, "t", "s"), tmp_path / "shots")
    assert "mathdefault" not in drawn
    assert "{10" not in drawn
    assert ">0.001<" in drawn or ">1e-05<" in drawn or ">10<" in drawn


def test_figures_of_trainings_that_diverged(tmp_path):
    """A score, a loss or an attention that is no number is left out of a figure."""
    nan = float("nan")
    trials = [SweepTrial({"penalty": penalty}, nan) for penalty in (0.1, 10.0)]
    save(sweep_figure(SweepRecord("balanced_accuracy", trials, 0), "t"), tmp_path / "sweep")
    trials = [
        SweepTrial({"learning_rate": r, "weight_decay": d}, nan) for r in (0.1, 1.0) for d in (0.0, 1.0)
    ]
    save(sweep_figure(SweepRecord("balanced_accuracy", trials, 0), "t"), tmp_path / "grid")
    for losses in ([nan, nan], [2.0, nan]):
        save(curves_figure({(0, 0): ([1, 2], losses), (1, 0): ([1, 2], [1.0, 0.5])}, "t"), tmp_path / "curve")
    save(curves_figure({(0, 0): ([1, 2], [nan, nan])}, "t"), tmp_path / "curve")
    save(attention_figure(np.full((2, 1), nan), ["0", "final"], ["cls"], "t"), tmp_path / "attention")
    by_class = attention_by_class_figure(np.full((2, 2, 1), nan), ["0", "final"], ["cls"], ["x", "y"], "t")
    save(by_class, tmp_path / "by-class")
