"""Input transforms against scikit-learn's scaler, where channels differ in scale by many powers of ten."""

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from featcache.probing.corrections import SCALING, corrections
from featcache.probing.estimators import HeadProbe
from featcache.probing.heads import get_head
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.inputs.transforms import InputTransform, OutputScale, fit_input_transform
from featcache.probing.scoring.kinds import SINGLE_LABEL
from featcache.probing.training.array_fitting import array_job

N, T, D = 1500, 2, 8


def standardized(array: np.ndarray, name: str = "standard") -> np.ndarray:
    tokens, rows = InMemoryTokens(array), torch.arange(len(array))
    return tokens.with_transform(fit_input_transform(name, tokens, rows)).batch(rows).numpy()


def plain() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(N, T, D))


def with_scales(*scales: float) -> np.ndarray:
    return plain() * np.resize(scales, (T, D))


@pytest.mark.parametrize(
    "array",
    [
        with_scales(1),
        with_scales(1e-3, 3e3),
        with_scales(*10.0 ** np.linspace(-12, 12, T * D)),
        with_scales(2e6, *[1.0] * 15),
        plain() + 1000,
        1e-3 * plain() + 1000,
        np.concatenate([np.full((N, T, 1), 14.62), plain()], 2),
        np.concatenate([np.full((N, T, 1), -3e4), 1e-3 * plain()], 2),
    ],
    ids=["plain", "layers", "channels", "massive", "far", "farther", "constant", "large-constant"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_channel_is_constant_by_its_own_rounding_alone(array: np.ndarray, dtype: type) -> None:
    array = np.clip(array, -6e4, 6e4).astype(dtype) if dtype is np.float16 else array.astype(dtype)
    scaler = StandardScaler().fit(array.reshape(N, -1).astype(np.float64))
    wanted = scaler.transform(array.reshape(N, -1).astype(np.float64)).reshape(array.shape)
    found = standardized(array)
    constant = wanted.std(0) < 0.5
    np.testing.assert_array_equal(found[:, constant], 0)
    np.testing.assert_allclose(found[:, ~constant], wanted[:, ~constant], atol=2e-3)


def test_bfloat16_tokens_are_measured_as_they_are_stored() -> None:
    array = torch.from_numpy(with_scales(1e-6, 1e6)).bfloat16()
    wanted = StandardScaler().fit_transform(array.double().reshape(N, -1)).reshape(array.shape)
    np.testing.assert_allclose(standardized(array), wanted, atol=1e-4)


def test_rounding_of_lengths_is_no_information() -> None:
    """A channel that is constant but for the division by the length stays 0; small ones beside it are kept."""
    directions = np.concatenate([np.full((N, 1, 1), 3.0), 1e-5 * plain()[:, :1]], 2)
    array = directions / np.linalg.norm(directions, axis=2, keepdims=True)
    array = (array * np.random.default_rng(1).uniform(0.5, 2, (N, 1, 1))).astype(np.float32)
    found = standardized(array, "l2+standard")
    np.testing.assert_array_equal(found[:, 0, 0], 0)
    np.testing.assert_allclose(found[:, 0, 1:].std(0), 1, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-17, 1.0, 1e19, 1e25])
def test_tokens_of_any_length_are_divided_by_it(scale: float) -> None:
    array = (plain()[:50] * scale).astype(np.float32)
    exact = array.astype(np.float64)
    wanted = exact / np.linalg.norm(exact, axis=2, keepdims=True)
    tokens, rows = InMemoryTokens(array), torch.arange(50)
    np.testing.assert_allclose(tokens.batch(rows).numpy(), wanted, atol=1e-6)
    applied = InputTransform(mean=torch.zeros(T, D), scale=torch.ones(T, D)).apply_(torch.from_numpy(array))
    np.testing.assert_allclose(applied.numpy(), wanted, atol=1e-6)


def test_a_transform_with_an_offset_is_kept_with_the_head() -> None:
    tokens = InMemoryTokens((1e-3 * plain() + 1000).astype(np.float32))
    transform = fit_input_transform("standard", tokens, torch.arange(N))
    assert transform.offset is not None
    again, rest = InputTransform.from_state(transform.state())
    assert not rest
    assert again.offset is not None
    assert torch.equal(again.offset, transform.offset)
    assert (
        fit_input_transform("standard", InMemoryTokens(plain().astype(np.float32)), torch.arange(N)).offset
        is None
    )


def test_constant_targets_have_no_deviation() -> None:
    scale = OutputScale.of(torch.full((1001, 1), 0.1))
    assert scale.scale.item() == 1


def test_small_informative_channels_are_learnt() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 200)
    array = rng.normal(size=(200, 1, 4)) * (5e3, 1e-3, 1, 1)
    array[:, 0, 1] = 1e-3 * (2 * labels - 1 + 0.3 * rng.normal(size=200))
    probe = HeadProbe("ridge", input="standard", protocol="quick")
    assert probe.fit(array[:100].astype(np.float32), labels[:100]).score(array[100:], labels[100:]) > 0.95


def test_a_correction_is_part_of_the_ids_of_the_runs_it_changed() -> None:
    linear, auto = (array_job(get_head(name), T) for name in ("linear", "auto"))
    assert corrections(linear, "l2", SINGLE_LABEL) == []
    assert SCALING in corrections(linear, "l2+standard", SINGLE_LABEL)
    assert SCALING in corrections(auto, "l2", SINGLE_LABEL)
