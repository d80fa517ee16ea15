"""What every head must do: a suite that runs over any entry of the registry, one's own included.

`check_head` runs all of it and raises AssertionError at the first thing that is not so. Nothing here knows how a head works.

Shapes: N samples, T tokens, D width, C classes, M members, B batch.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.probing.heads.base import Head
from featcache.probing.heads.closed_form import ClosedFormHead
from featcache.probing.heads.info import AUTO, CLOSED_FORM, TRAINED, HeadInfo
from featcache.probing.inputs.tokens import InMemoryTokens, read_features
from featcache.probing.protocols.protocol import QUICK, Member
from featcache.probing.results.saved_head import HeadConfig, load_head, save_head
from featcache.probing.scoring.kinds import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featcache.probing.scoring.tasks import SingleLabel
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.fitted import FittedHead
from featcache.probing.training.prediction import predict
from featcache.probing.training.trainer import fit_members
from featcache.store.errors import RequestError

LAYERS, KINDS_OF_TOKENS, WIDTH = 4, 2, 8
TOKENS = LAYERS * KINDS_OF_TOKENS
SHORT = replace(
    QUICK, learning_rates=(1e-2, 3e-2), weight_decays=(1e-4,), dropouts=(0.1,), min_epochs=4, min_steps=40
)

Check = Callable[[HeadInfo], None]


def check_head(info: HeadInfo) -> None:
    """Run every check on a head.

    Raises:
        AssertionError: naming the check, where the head does not do what all must.
    """
    for check in checks(info):
        try:
            check(info)
        except AssertionError as error:
            raise AssertionError(f"{info.name}: {check.__name__}: {error}") from error


def checks(info: HeadInfo) -> Iterator[Check]:
    """The checks that apply to a head."""
    yield check_learns_from_a_read_only_map
    yield check_takes_stored_types
    yield check_one_class
    yield check_fewer_samples_than_classes
    yield check_fits_twice_alike
    yield check_every_input_transform
    yield check_saves_and_loads
    yield check_other_targets
    if info.fitting != AUTO:
        yield check_size
    if info.fitting in (TRAINED, CLOSED_FORM):
        yield check_members_equal_lone_ones
    if info.fitting == TRAINED:
        yield check_samples_do_not_mix
    if info.has_attention:
        yield check_attention_sums_to_one


def clusters(num_samples: int = 90, num_classes: int = 3, seed: int = 0) -> tuple[Any, npt.NDArray[np.int64]]:
    """Tokens ``[N, T, D]``, float32, of classes around centers, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num_samples) % num_classes
    centers = 2 * rng.normal(size=(num_classes, TOKENS, WIDTH))
    tokens = centers[labels] + rng.normal(size=(num_samples, TOKENS, WIDTH))
    return tokens.astype(np.float32), labels


def fit(info: HeadInfo, tokens: Any, targets: npt.NDArray[Any], **changes: Any) -> FittedHead:
    """Choose and fit the head on arrays."""
    protocol = replace(SHORT, **changes)
    return fit_head(array_job(info, TOKENS, LAYERS), InMemoryTokens(tokens), targets, protocol=protocol)


def answers(fitted: FittedHead, tokens: Any) -> Tensor:
    """Outputs ``[N, O]``."""
    return predict(fitted.head, InMemoryTokens(tokens), torch.arange(len(tokens)), 64)


def check_learns_from_a_read_only_map(info: HeadInfo) -> None:
    """Features come as read-only memory maps, and what is easy is learned."""
    tokens, labels = clusters()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        np.save(path, tokens)
        mapped = np.load(path, mmap_mode="r")
        fitted = fit(info, mapped, labels)
        right = (answers(fitted, mapped).argmax(1).numpy() == labels).mean()
        assert right > 0.9, f"{right:.2f} of separable samples are right"
        assert np.array_equal(np.asarray(mapped), tokens)
        del mapped
    assert fitted.head.num_members == 1
    assert not fitted.head.training


def check_takes_stored_types(info: HeadInfo) -> None:
    """float16 and bfloat16 tokens give about what float32 ones do."""
    tokens, labels = clusters()
    expected = answers(fit(info, tokens, labels), tokens).argmax(1)
    for stored in (tokens.astype(np.float16), torch.from_numpy(tokens).bfloat16()):
        outputs = answers(fit(info, stored, labels), stored)
        assert outputs.dtype is torch.float32, f"outputs are {outputs.dtype}"
        agreement = (outputs.argmax(1) == expected).double().mean()
        assert agreement > 0.95, f"{agreement:.2f} of the predictions agree"


def check_one_class(info: HeadInfo) -> None:
    """A train split of one class is answered with that class."""
    tokens, labels = clusters()
    outputs = answers(fit(info, tokens, np.zeros_like(labels)), tokens)
    assert outputs.shape == (len(tokens), 1), f"outputs are of shape {tuple(outputs.shape)}"
    assert not outputs.isnan().any(), "outputs are not numbers"


def check_fewer_samples_than_classes(info: HeadInfo) -> None:
    """Labels that skip most class indices: nothing is NaN, and a class without samples is not predicted."""
    tokens, _ = clusters(12)
    labels = np.array([0, 7, 30] * 4)
    outputs = answers(fit(info, tokens, labels), tokens)
    assert outputs.shape == (12, 31), f"outputs are of shape {tuple(outputs.shape)}"
    assert not outputs.isnan().any(), "outputs are not numbers"
    probabilities = outputs.softmax(1)
    assert torch.isfinite(probabilities).all(), "probabilities are not finite"
    if info.fitting != TRAINED:
        assert set(outputs.argmax(1).tolist()) <= {0, 7, 30}, "a class without samples is predicted"


def check_fits_twice_alike(info: HeadInfo) -> None:
    """The same call gives the same head, and leaves torch's global generator alone."""
    tokens, labels = clusters()
    before = torch.get_rng_state()
    first, second = (fit(info, tokens, labels) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    assert first.validation == second.validation
    for (name, tensor), other in zip(
        first.head.member_state().items(), second.head.member_state().values(), strict=True
    ):
        assert torch.equal(tensor, other), f"{name} differs"


def check_every_input_transform(info: HeadInfo) -> None:
    """Standardized inputs make the head blind to scale and offset of every channel; the head keeps the statistics."""
    tokens, labels = clusters()
    rng = np.random.default_rng(1)
    shape = tokens.shape[1:]
    moved = tokens * rng.uniform(0.5, 2, shape) + rng.normal(size=shape)
    moved = moved.astype(np.float32)
    outputs = [answers(fit(info, array, labels, input="standard"), array) for array in (tokens, moved)]
    agreement = (outputs[0].argmax(1) == outputs[1].argmax(1)).double().mean()
    assert agreement > 0.95, f"{agreement:.2f} of the predictions agree"
    both = answers(fit(info, tokens, labels, input="l2+standard"), tokens)
    assert torch.isfinite(both).all(), "outputs are not finite"


def check_saves_and_loads(info: HeadInfo) -> None:
    """A saved head answers as it did, to the last bit."""
    tokens, labels = clusters()
    fitted = fit(info, tokens, labels, input="standard")
    config = HeadConfig(
        head=fitted.name,
        layers=("0", "1", "2", "final"),
        tokens=("cls", "ap"),
        num_tokens=TOKENS,
        options=fitted.head.options,
        input=fitted.input,
        target_kind=SINGLE_LABEL,
        width=WIDTH,
        num_classes=3,
        class_names=("a", "b", "c"),
        cache_key="0123456789ab",
        architecture="any",
        weights_digest="0" * 64,
        protocol="quick",
        seed=0,
        parts=[("norm2", ["0", "1", "2", "final"], ["cls", "ap"])],
        features="0" * 64,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_head(Path(folder), fitted.head, config)
        loaded, _ = load_head(Path(folder))
    rows = torch.arange(len(tokens))
    outputs = predict(loaded, InMemoryTokens(tokens), rows, 64)
    assert torch.equal(outputs, answers(fitted, tokens)), "it answers otherwise"


def check_other_targets(info: HeadInfo) -> None:
    """Label sets and numbers are learned, or refused by name."""
    tokens, labels = clusters()
    sets = np.stack([labels == 0, labels != 1], axis=1).astype(np.uint8)
    numbers = 100 + 10 * np.stack([labels, -labels], axis=1).astype(np.float32)
    cases: list[tuple[str, npt.NDArray[Any], float]] = [
        (MULTI_LABEL, sets, 0.9),
        (REGRESSION, numbers, 0.7),
    ]
    for kind, targets, least in cases:
        if kind not in info.kinds:
            refusal = _refusal(info, tokens, targets)
            assert f"head {info.name!r} is for" in refusal, f"{kind} targets are met with {refusal!r}"
            assert kind in refusal, f"the error does not say what is wrong: {refusal}"
            continue
        fitted = fit(info, tokens, targets)
        score = fitted.task.score(answers(fitted, tokens), torch.from_numpy(targets.astype(np.float32)))
        assert score > least, f"{fitted.task.metric} of {kind} targets is {score:.2f}"
        if kind == MULTI_LABEL:
            # Positive logits are positive predictions, whatever a head is fitted by.
            right = ((answers(fitted, tokens) > 0).numpy() == targets).mean()
            assert right > 0.9, f"{right:.2f} of separable label sets are right"


def _refusal(info: HeadInfo, tokens: Any, targets: npt.NDArray[Any]) -> str:
    try:
        fit(info, tokens, targets)
    except RequestError as error:
        return str(error)
    return "no error"


def check_size(info: HeadInfo) -> None:
    """The formula of the registry is the number of parameters."""
    job = array_job(info, TOKENS, LAYERS)
    count = sum(parameter.numel() for parameter in job.build(TOKENS, WIDTH, 3, (0.0,)).parameters())
    sizes = {"T": TOKENS, "D": WIDTH, "C": 3, "N": 1, "L": LAYERS, "K": KINDS_OF_TOKENS}
    stated = info.num_parameters(**sizes, **job.options)
    assert stated == count, f"{info.size} is {stated}, and there are {count} parameters"


def check_members_equal_lone_ones(info: HeadInfo) -> None:
    """A member of many is what it is alone."""
    tokens, labels = clusters()
    for index, (together, alone) in enumerate(_members(info, tokens, labels)):
        outputs = [
            predict(head, _DoubleTokens(tokens), torch.arange(len(tokens)), 64).softmax(1)
            for head in (together.double(), alone.double())
        ]
        furthest = (outputs[0] - outputs[1]).abs().max()
        assert furthest < 1e-4, f"member {index} is {furthest:.2g} off in a probability"


class _DoubleTokens(InMemoryTokens):
    """Makes a training run in float64, so that rounding cannot hide a difference, nor compound to one."""

    def batch(self, rows: Tensor) -> Tensor:
        return super().batch(rows).double()


def _members(info: HeadInfo, tokens: Any, labels: npt.NDArray[np.int64]) -> Iterator[tuple[Head, Head]]:
    source, rows, targets = InMemoryTokens(tokens), torch.arange(len(tokens)), torch.from_numpy(labels)
    if info.fitting == CLOSED_FORM:
        head_class: type[ClosedFormHead] = info.load()
        settings = head_class.grid(len(labels))
        features, size = read_features(source, rows, "cpu"), (TOKENS, WIDTH)
        together = head_class.fit(features, targets, size, SingleLabel(3), settings)
        for index, values in enumerate(settings):
            yield together.member(index), head_class.fit(features, targets, size, SingleLabel(3), [values])
        return
    dropout = 0.3 if info.has_dropout else 0.0
    members = [Member(1e-2, 1e-1, 0.0), Member(3e-3, 1e-2, dropout), Member(1e-3, 0.0, dropout)]

    job = array_job(info, TOKENS, LAYERS)

    def trained(part: list[Member]) -> list[Head]:
        return fit_members(
            lambda *size: job.build(*size).double(),
            _DoubleTokens(tokens),
            targets,
            rows,
            part,
            protocol=replace(SHORT, min_epochs=2, min_steps=12),
            batch_size=30,
            seed=3,
            num_classes=3,
        )

    for member, head in zip(members, trained(members), strict=True):
        yield head, trained([member])[0]


def check_samples_do_not_mix(info: HeadInfo) -> None:
    """A sample's output does not depend on the others of its batch."""
    tokens, labels = clusters()
    fitted = fit(info, tokens, labels)
    source, rows = InMemoryTokens(tokens), torch.arange(len(tokens))
    together, few = (predict(fitted.head, source, rows, size) for size in (len(tokens), 7))
    assert torch.allclose(together, few, atol=1e-4), "outputs depend on the batch"


def check_attention_sums_to_one(info: HeadInfo) -> None:
    """Attention is ``[M, B, H, T]``, not negative, and sums to 1 over tokens."""
    tokens, labels = clusters()
    fitted = fit(info, tokens, labels)
    batch = InMemoryTokens(tokens).with_transform(fitted.head.input_transform).batch(torch.arange(5))
    with torch.inference_mode():
        weights = fitted.head.attention(batch)
    assert weights.ndim == 4, f"it is {tuple(weights.shape)}"
    assert (*weights.shape[:2], weights.shape[3]) == (1, 5, TOKENS), f"it is {tuple(weights.shape)}"
    assert (weights >= 0).all(), "a weight is negative"
    assert torch.allclose(weights.sum(3), torch.ones(())), "weights do not sum to 1"
