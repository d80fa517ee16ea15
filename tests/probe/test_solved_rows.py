"""`--head linear --solver exact` and `--head logreg` are one head: one name, trained once, whichever was typed and by which version."""

import json
import shutil

import pytest

from featcache.probing.report.groups import group_rows
from featcache.probing.requests import jobs
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.results.rows import read_rows
from featcache.probing.results.solved_rows import heads_in_results
from featcache.probing.run import probe

from .caches import rich_cache, rich_plan
from .recording_reporter import RecordingReporter

FORMS = ({"heads": ("linear",), "solver": "exact"}, {"heads": ("logreg",)})
PENALTIES = ("l2", "group-lasso")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    plan = rich_plan({"train": 90, "test": 40}, groups={})
    return rich_cache(tmp_path_factory.mktemp("cache") / "made", plan)[0]


@pytest.fixture(scope="module")
def trained_baseline(cache, tmp_path_factory):
    """Results with the baseline alone, which takes longer than all that is solved for."""
    out = tmp_path_factory.mktemp("baseline")
    probe(
        cache,
        ProbeRequest(heads=("linear",), protocol="quick", baselines="trained", seeds=(0, 1, 2, 3), out=out),
    )
    return out


@pytest.fixture
def out(trained_baseline, tmp_path):
    return shutil.copytree(trained_baseline, tmp_path / "results")


def solved(cache, out, form, reporter=None, **settings):
    """Probe by one of the forms; the rows of the exact solver."""
    asked = ProbeRequest(
        **form, layers="all", tokens="cls+ap", protocol="quick", baselines="trained", out=out, **settings
    )
    return [row for row in probe(cache, asked, reporter=reporter) if row.solver == "exact"]


def solved_by_an_earlier_version(cache, out, monkeypatch, **settings):
    """Rows as earlier versions wrote them for ``--head linear --solver exact``: ids, folders and names have ``linear``."""
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "SOLVED_HEAD", "linear")
        rows = solved(cache, out, FORMS[0], **settings)
    written = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["head"] for row in written if row["solver"] == "exact"] == ["linear"] * len(rows)
    return rows


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("first", [0, 1])
def test_the_other_form_is_not_trained_again(cache, out, first, penalty):
    (row,) = solved(cache, out, FORMS[first], penalty=penalty)
    assert (row.head, row.chosen_head, row.penalty_kind) == ("logreg", "logreg", penalty)
    reporter = RecordingReporter()
    (same,) = solved(cache, out, FORMS[1 - first], reporter, penalty=penalty)
    assert (same.run, same.folder, same.finished_at) == (row.run, row.folder, row.finished_at)
    assert any(message.startswith("logreg on all") and "earlier" in message for message in reporter.messages)
    assert [one.run for one in read_rows(out) if one.solver == "exact"] == [row.run]


def test_both_forms_in_one_request_are_one_job(cache, out):
    both = {"heads": ("linear", "logreg"), "solver": "exact"}
    assert [row.head for row in solved(cache, out, both)] == ["logreg"]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_an_earlier_version_are_found_and_shown_under_the_one_name(cache, out, monkeypatch, form):
    (old,) = solved_by_an_earlier_version(cache, out, monkeypatch)
    (listed,) = (row for row in read_rows(out) if row.solver == "exact")
    assert (listed.head, listed.chosen_head, listed.run) == ("logreg", "logreg", old.run)

    (found,) = solved(cache, out, form)
    assert (found.folder, found.finished_at, found.score) == (old.folder, old.finished_at, old.score)
    assert found.run != old.run, "kept under the id that the present name gives"
    lines = len(read_rows(out))
    assert solved(cache, out, form) == [found]
    assert len(read_rows(out)) == lines, "written again once, not with every request"


def test_seeds_of_both_names_are_repetitions_of_one_head(cache, out, monkeypatch):
    solved_by_an_earlier_version(cache, out, monkeypatch, seeds=(0, 1, 2))
    solved(cache, out, FORMS[1], seeds=(1, 3))
    (group,) = (group for group in group_rows(read_rows(out)) if group.first.solver == "exact")
    assert [row.seed for row in group.rows] == [0, 1, 2, 3]


def test_a_head_that_an_earlier_version_trained_under_both_names_is_shown_once(
    cache, out, trained_baseline, tmp_path, monkeypatch
):
    solved_by_an_earlier_version(cache, out, monkeypatch)
    other = shutil.copytree(trained_baseline, tmp_path / "other")
    solved(cache, other, FORMS[1])
    with (out / "results.jsonl").open("a") as results:
        results.write((other / "results.jsonl").read_text())
    groups = group_rows(read_rows(out))
    assert [group.first.head for group in groups] == ["linear", "logreg"]


def test_runs_of_other_settings_stay_apart(cache, out, monkeypatch):
    """Rows of the former name are joined with those of the same run only."""
    solved_by_an_earlier_version(cache, out, monkeypatch, input="standard")
    solved(cache, out, FORMS[1])
    groups = [group for group in group_rows(read_rows(out)) if group.first.solver == "exact"]
    assert sorted(group.first.input for group in groups) == ["l2", "standard"]


def test_a_row_whose_head_is_gone_is_trained_again(cache, out, monkeypatch):
    (old,) = solved_by_an_earlier_version(cache, out, monkeypatch)
    shutil.rmtree(out / old.folder)
    (row,) = solved(cache, out, FORMS[0])
    assert row.folder != old.folder
    assert row.score == old.score


@pytest.mark.parametrize(
    ("heads", "solvers", "names"),
    [
        (["linear"], [], ["linear"]),
        (["linear"], ["adamw"], ["linear"]),
        (["linear", "ridge"], ["exact"], ["ridge", "logreg"]),
        (["linear"], ["adamw", "exact"], ["linear", "logreg"]),
        (["logreg"], ["exact"], ["logreg"]),
    ],
)
def test_filters_of_both_forms_find_the_one_name(heads, solvers, names):
    assert heads_in_results(heads, solvers) == names
