"""What is asked for: one meaning for each way of saying it, and no setting that is passed over in silence."""

import pytest

from featcache.probing.requests.jobs import jobs
from featcache.probing.requests.request import MAX_OPTION, ProbeRequest
from featcache.probing.run import probe
from featcache.probing.training import full_batch
from featcache.store.errors import RequestError

from .caches import rich_cache, rich_plan
from .recording_reporter import RecordingReporter


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    plan = rich_plan({"train": 90, "test": 40}, groups={})
    return rich_cache(tmp_path_factory.mktemp("cache") / "made", plan)[0]


def ask(head: str = "linear", layers: str = "all", tokens: str = "cls+ap", **settings) -> ProbeRequest:
    return ProbeRequest(
        heads=(head,),
        layers=layers,
        tokens=tokens,
        protocol="quick",
        baselines=settings.pop("baselines", "trained"),
        **settings,
    )


@pytest.mark.parametrize(
    ("settings", "heads"),
    [({}, 8), ({"options": {"num_heads": 2}}, 2), ({"num_heads": 4, "options": {"num_heads": 4}}, 4)],
)
def test_attention_heads_are_those_asked_for(cache, settings, heads):
    assert jobs(cache, ask("attentive", **settings))[-1].num_heads == heads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "attentive", "num_heads": 2, "options": {"num_heads": 4}}, "num-heads is 2, the option num_heads 4"),
        ({"head": "mlp", "options": {"hidden": MAX_OPTION + 1}}, "hidden must be from 1 to 1,048,576"),
        ({"head": "mlp", "options": {"hidden": 0}}, "hidden must be from 1 to"),
        ({"penalty": "group-lasso"}, "group-lasso is for heads that are solved exactly; add --solver exact"),
        ({"head": "blend"}, "head 'blend' is what auto makes of several heads; ask for auto"),
    ],
)  # fmt: skip
def test_what_would_be_passed_over_is_refused(arguments, message):
    with pytest.raises(RequestError, match=message):
        ask(**arguments)


def test_the_protocols_own_input_transform_may_be_named_or_not(cache, tmp_path):
    rows = probe(cache, ask(layers="last", tokens="cls", input="l2", out=tmp_path))
    assert [row.run for row in rows] == [probe(cache, ask(layers="last", tokens="cls", out=tmp_path))[0].run]
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1
    assert len(jobs(cache, ask(layers="last", tokens="cls", input="standard"))) == 2


def test_what_is_asked_for_is_told_by_its_meaning(cache, tmp_path):
    """Saying what the targets are anyway is not another run."""
    (row,) = probe(cache, ask(layers="last", tokens="cls", out=tmp_path))
    (same,) = probe(cache, ask(layers="last", tokens="cls", target_kind="single-label", out=tmp_path))
    assert (same.run, same.finished_at) == (row.run, row.finished_at)
    (other,) = probe(cache, ask(layers="last", tokens="cls", target_kind="regression", out=tmp_path))
    assert other.run != row.run
    with pytest.raises(
        RequestError, match="the loss mae is for regression targets, and these are single-label"
    ):
        probe(cache, ask(regression_loss="mae", out=tmp_path))


def test_more_shots_than_there_are_samples(cache, tmp_path):
    heard = RecordingReporter()
    row = probe(cache, ask("ncm", shots=(5, 1000), out=tmp_path), reporter=heard)[-1]
    assert (row.shots, row.train_samples) == (1000, 90)
    assert [note for note in heard.messages if "5 shots" in note and "fewer" in note] == []
    assert any(
        "1000 shots" in note and "3 of 3 classes have fewer samples; all" in note for note in heard.messages
    )


def test_a_tap_that_nothing_looks_at(cache):
    with pytest.raises(RequestError, match="the heads asked for see the final layer alone"):
        jobs(cache, ask(layers="last", tap="block"))


@pytest.mark.parametrize(
    ("text", "name"),
    [("final", "last"), ("1, 2,3,final", "all"), ("quarters", "quarters"), ("3,final", "3,final"), ("2,final", "mid+last")],
)  # fmt: skip
def test_a_list_that_is_a_layer_set_is_called_so(cache, text, name):
    assert jobs(cache, ask(layers=text))[-1].selection.name == name


@pytest.mark.parametrize("head", ["ridge", "logreg"])
def test_features_that_do_not_fit_are_refused_before_anything_is_trained(cache, tmp_path, monkeypatch, head):
    monkeypatch.setattr(full_batch, "free_memory", lambda device: 10_000)
    with pytest.raises(RequestError, match=rf"{head} on 90 samples of .* features and .* needs .*about"):
        probe(cache, ask(head, out=tmp_path))
    assert not (tmp_path / "results.jsonl").exists()
    probe(cache, ask("linear", out=tmp_path))


def test_a_note_says_what_is_streamed(cache, tmp_path):
    reporter = RecordingReporter()
    probe(cache, ask(out=tmp_path, memory=45_000), reporter=reporter)
    notes = [text for text in reporter.messages if "are streamed" in text]
    assert len(notes) == 1
    assert notes[0].startswith("note: the train tokens of all take ")
    told = RecordingReporter()
    probe(cache, ask(out=tmp_path), reporter=told)
    assert not any("streamed" in text for text in told.messages)
