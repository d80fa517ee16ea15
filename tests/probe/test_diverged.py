"""Trainings that diverge: said, ranked last, never scored, and no reason to lose the sound ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.probing.estimators import HeadProbe, HeadRegressor
from featcache.probing.grid import probe_grid
from featcache.probing.heads import get_head
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK, Member
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import RESULTS_FILE, read_rows
from featcache.probing.run import probe
from featcache.probing.scoring import metrics
from featcache.probing.scoring.tasks import MultiLabel, Regression, SingleLabel
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.unfinished import Unfinished
from featcache.store.errors import DivergedError
from support.caches import make_content, make_plan, write_cache

from .intervals import score_interval
from .recording_reporter import RecordingReporter

SHORT = replace(QUICK, min_epochs=1, min_steps=25, weight_decays=(1e-4,))
ONE = replace(SHORT, learning_rates=(1e30, 1e-2))
ALL = replace(SHORT, learning_rates=(1e30, 1e25))
LABELS = np.arange(120) % 3
TOKENS = (
    np.random.default_rng(0).normal(size=(3, 4, 8))[LABELS]
    + np.random.default_rng(1).normal(size=(120, 4, 8))
).astype(np.float32)
TARGETS = {
    "single-label": LABELS,
    "multi-label": np.eye(3, dtype=np.uint8)[LABELS],
    "regression": TOKENS[:, 0, :2].copy(),
}
TASKS = {"single-label": SingleLabel(3), "multi-label": MultiLabel(3), "regression": Regression(2)}


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def fit(
    head: str, protocol: Any, target_type: str, reporter: RecordingReporter | None = None, rows: int = 120
) -> Any:
    job = array_job(get_head(head), 4)
    targets = TARGETS[target_type][:rows]
    return fit_head(job, InMemoryTokens(TOKENS[:rows]), targets, protocol=protocol, reporter=reporter)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("target_type", TASKS)
def test_outputs_that_are_not_numbers_have_no_score(target_type: str, bad: float) -> None:
    task, targets = TASKS[target_type], torch.from_numpy(TARGETS[target_type])
    outputs = torch.randn(120, task.num_outputs)
    outputs[7, 1] = bad
    report = task.scores(outputs, targets)
    assert set(report.scores.values()) == {None}
    assert report.scores.keys() == task.scores(torch.randn(120, task.num_outputs), targets).scores.keys()
    assert task.score(outputs, targets) == -float("inf")
    assert score_interval(outputs, targets, task) is None


def test_classes_that_cannot_be_are_sound() -> None:
    """Minus infinity is the logit of a class that training did not meet."""
    logits = torch.randn(120, 4)
    logits[:, 3] = -torch.inf
    report = metrics.single_label_report(logits, torch.from_numpy(LABELS))
    assert None not in {report.scores[name] for name in ("top1", "nll", "ece")}
    assert SingleLabel(4).score(torch.full((120, 4), -torch.inf), torch.from_numpy(LABELS)) == -float("inf")


def test_scores_of_extreme_numbers_are_finite() -> None:
    huge = torch.full((4, 1), 3e38) * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    sets = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    for report in (metrics.multi_label_report(huge, sets), metrics.regression_report(huge, sets)):
        assert np.isfinite([value for value in report.scores.values() if value is not None]).all()
    alone = metrics.regression_report(torch.ones(1, 1), torch.zeros(1, 1))
    assert (alone.scores["r2"], alone.scores["spearman"], alone.scores["mse"]) == (None, None, 1)


@pytest.mark.parametrize("head", ["linear", "ensemble", "attentive"])
@pytest.mark.parametrize("target_type", TASKS)
def test_a_member_that_diverged_is_ranked_last_and_named(head: str, target_type: str) -> None:
    if target_type not in get_head(head).kinds:
        pytest.skip("the head has no such targets")
    heard = RecordingReporter()
    fitted = fit(head, ONE, target_type, heard)
    assert fitted.chosen.learning_rate == 1e-2
    assert np.isfinite(fitted.validation)
    (note,) = [text for text in heard.messages if "diverged" in text]
    assert "1 member diverged" in note
    assert "1e+30/0.0001" in note
    trials = {trial.settings["learning_rate"]: trial.validation for trial in fitted.sweep.trials}
    assert trials[1e30] == -float("inf")


@pytest.mark.parametrize("changes", [{"folds": 3}, {"halving": 2, "halving_min_steps": 5}])
def test_folds_and_halving_survive_a_member(changes: dict[str, int]) -> None:
    protocol = replace(ONE, learning_rates=(1e30, 1e28, 1e-2, 1e-3), **changes)
    assert fit("linear", protocol, "multi-label").chosen.learning_rate < 1


@pytest.mark.parametrize("target_type", TASKS)
def test_a_head_of_which_all_members_diverge_fails_in_one_line(target_type: str) -> None:
    with pytest.raises(
        DivergedError, match=r"^linear: all 2 members diverged .*1e\+30, 1e\+25.*lower"
    ) as error:
        fit("linear", ALL, target_type)
    assert "\n" not in str(error.value)


def test_a_final_fit_that_diverges_leaves_the_next_best(monkeypatch: pytest.MonkeyPatch) -> None:
    from featcache.probing.training import sweep

    real = sweep.train_members

    def explode(planned: Any, rows: Any, members: Any, *rest: Any) -> Any:
        heads = real(planned, rows, members, *rest)
        if len(rows) == 120 and members[0].learning_rate == 1e-2:
            next(heads[0].parameters()).data.fill_(torch.nan)
        return heads

    monkeypatch.setattr(sweep, "train_members", explode)
    heard = RecordingReporter()
    fitted = fit("linear", replace(SHORT, learning_rates=(1e-2, 1e-3)), "single-label", heard)
    assert fitted.chosen.learning_rate == 1e-3
    assert any("0.01/0.0001" in text for text in heard.messages if "diverged" in text)


def test_auto_leaves_out_what_diverged() -> None:
    heard = RecordingReporter()
    fitted = fit("auto", ALL, "single-label", heard)
    assert {one["head"] for one in fitted.candidates} <= {"logreg", "lda"}
    assert any("attentive on l2 is left out" in text for text in heard.messages)


@pytest.mark.parametrize("head", ["linear", "ridge"])
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 7, 8])
def test_few_samples_of_a_regression(head: str, rows: int) -> None:
    fitted = fit(head, SHORT, "regression", rows=rows)
    assert fitted.validation <= 1 or rows < 4


def test_unfinished_sweeps_keep_members_that_diverged(tmp_path: Path) -> None:
    lost, kept = Member(1e30, 0.0, 0.0), Member(1e-2, 0.0, 0.0)
    unfinished = Unfinished(tmp_path, "run")
    unfinished.write([{lost: -float("inf"), kept: 0.5}])
    strict(next(tmp_path.glob("*/*.json")).read_text())
    assert unfinished.read() == [{lost: -float("inf"), kept: 0.5}]


def test_the_other_heads_of_a_command_go_on(tmp_path: Path) -> None:
    plan = make_plan(width=8)
    cache = write_cache(tmp_path / "cache", plan, make_content(plan))
    protocol = tmp_path / "hot.toml"
    protocol.write_text(
        'base = "quick"\nlearning_rates = [1e30]\nweight_decays = [1e-4]\nmin_steps = 20\nmin_epochs = 1\n'
    )
    request = ProbeRequest(
        heads=("mlp", "ridge"),
        layers="last",
        tokens="cls",
        protocol=str(protocol),
        baselines="trained",
        out=tmp_path / "out",
    )
    heard = RecordingReporter()
    with pytest.raises(DivergedError, match=r"linear.*diverged.*\n.*mlp.*diverged") as error:
        probe(cache, request, reporter=heard)
    (row,) = error.value.rows
    assert (row.head, row.gain) == ("ridge", None)
    assert row.score is not None
    assert [strict(line)["head"] for line in (tmp_path / "out" / RESULTS_FILE).read_text().splitlines()] == [
        "ridge"
    ]
    assert read_rows(tmp_path / "out") == [row]
    assert not (tmp_path / "out" / "unfinished").exists()
    result = probe_grid([cache], request)
    assert [one.head for one in result.rows] == ["ridge"]
    assert list(result.failures) == [str(cache.directory)]


def test_estimators_say_that_training_diverged() -> None:
    with pytest.raises(DivergedError, match="diverged"):
        HeadProbe("linear", protocol=ALL).fit(TOKENS, LABELS)
    with pytest.raises(DivergedError, match="diverged"):
        HeadRegressor("linear", protocol=ALL).fit(TOKENS, TOKENS[:, 0, 0])
