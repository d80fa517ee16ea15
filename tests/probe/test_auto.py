"""What `--head auto` chooses: by held-out samples alone, the earlier of a tie, an average only where it is better."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.probing.head_contract import SHORT, TOKENS, clusters
from featcache.probing.heads import closed_form, get_head
from featcache.probing.heads.blend import RAW, BlendHead
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.scoring.tasks import Regression, SingleLabel
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.auto import Candidate, choose
from featcache.probing.training.prediction import predict

from .recording_reporter import RecordingReporter

TARGETS = torch.tensor([0, 0, 1, 1])


def candidate(name: str, probabilities: list[float]) -> Candidate:
    """One that gives class 1 these probabilities."""
    ones = torch.tensor(probabilities)
    outputs = torch.stack([1 - ones, ones], 1).log()
    return Candidate(
        name, "l2", SingleLabel(2).score(outputs, TARGETS), outputs, lambda: pytest.fail("fitted")
    )


def test_the_earlier_of_a_tie_wins_and_an_average_must_be_better() -> None:
    first, second = candidate("logreg", [0.4, 0.4, 0.6, 0.3]), candidate("lda", [0.4, 0.4, 0.3, 0.6])
    choice, reason = choose(
        [first, second, candidate("attentive", [0.9, 0.9, 0.1, 0.1])], TARGETS, SingleLabel(2)
    )
    # The average of both is 0.45 for the last two, which argmax takes for class 0.
    assert choice.parts == (first,)
    assert reason.startswith(
        "logreg on l2: balanced_accuracy 0.7500 on held-out samples of train; lda on l2 0.7500"
    )


def test_an_average_that_is_better_wins() -> None:
    first, second = candidate("logreg", [0.1, 0.6, 0.9, 0.9]), candidate("lda", [0.6, 0.1, 0.9, 0.9])
    choice, reason = choose([first, second], TARGETS, SingleLabel(2))
    assert choice.parts == (first, second)
    assert choice.score == 1.0
    assert reason.startswith("logreg on l2 + lda on l2: balanced_accuracy 1.0000")


def test_a_blend_is_the_mean_of_its_parts_each_with_its_transform() -> None:
    tokens, labels = clusters()
    source, rows = InMemoryTokens(tokens), torch.arange(len(tokens))
    parts = [
        fit_head(array_job(get_head(name), TOKENS), source, labels, protocol=replace(SHORT, input=transform))
        for name, transform in (("ridge", "standard"), ("attentive", "l2"))
    ]
    blend = BlendHead.of(["ridge", "attentive"], [part.head for part in parts], "single-label")
    assert blend.input_transform is RAW
    expected = torch.stack([predict(part.head, source, rows, 64).softmax(1) for part in parts]).mean(0)
    torch.testing.assert_close(predict(blend, source, rows, 64).softmax(1), expected)
    with torch.device("meta"):
        again = get_head("blend").build(TOKENS, tokens.shape[2], 3, **blend.options)
    again.load_member(blend.member_state())
    torch.testing.assert_close(predict(again, source, rows, 64).softmax(1), expected)
    with pytest.raises(RuntimeError, match="unexpected parameters other"):
        again.load_member(blend.member_state() | {"other": torch.ones(1)})


def test_a_blend_of_regressions_is_in_the_unit_of_the_targets() -> None:
    tokens, labels = clusters()
    source, rows, numbers = InMemoryTokens(tokens), torch.arange(len(tokens)), 1000.0 + labels
    job = array_job(get_head("linear"), TOKENS)
    part = fit_head(job, source, numbers, protocol=SHORT)
    blend = BlendHead.of(["linear", "linear"], [part.head, part.head], "regression")
    torch.testing.assert_close(predict(blend, source, rows, 64), predict(part.head, source, rows, 64))
    assert Regression(1).score(predict(blend, source, rows, 64), torch.from_numpy(numbers)[:, None]) > 0.5


def test_validation_is_of_heads_that_did_not_see_the_held_out_samples() -> None:
    """Labels that are drawn by lot can be learnt by heart, but not guessed."""
    tokens, labels = clusters(90)
    drawn = np.random.default_rng(0).permutation(labels)
    job = array_job(get_head("auto"), TOKENS)
    found = [
        fit_head(job, InMemoryTokens(tokens), targets, protocol=SHORT).validation
        for targets in (labels, drawn)
    ]
    assert found[0] > 0.9
    assert found[1] < 0.7


def test_what_the_data_are_too_large_for_is_left_out(monkeypatch) -> None:
    tokens, labels = clusters()
    monkeypatch.setattr(closed_form, "MAX_DIRECTIONS", 10)
    heard = RecordingReporter()
    job = array_job(get_head("auto"), TOKENS)
    fitted = fit_head(job, InMemoryTokens(tokens), labels, protocol=SHORT, reporter=heard)
    assert "lda" not in {one["head"] for one in fitted.candidates}
    assert {"logreg", "attentive"} <= {one["head"] for one in fitted.candidates}
    attentive = fit_head(
        array_job(get_head("attentive"), TOKENS), InMemoryTokens(tokens), labels, protocol=SHORT
    )
    assert fitted.seconds > attentive.seconds / 2, "those that lost took their time too"
    assert any("lda on l2 is left out: lda decomposes a matrix" in text for text in heard.messages)


def test_an_input_transform_that_is_asked_for_leaves_no_other() -> None:
    tokens, labels = clusters()
    job = replace(array_job(get_head("auto"), TOKENS), input="standard")
    fitted = fit_head(job, InMemoryTokens(tokens), labels, protocol=SHORT)
    assert {one["input"] for one in fitted.candidates} == {"standard"}
    one_each = fit_head(job, InMemoryTokens(tokens[:3]), labels[:3], protocol=SHORT)
    assert (one_each.name, one_each.input) == ("logreg", "standard")
