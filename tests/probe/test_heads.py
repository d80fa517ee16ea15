"""Every head of the registry does what all must; and single heads against what a library or an obvious formula gives."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from featcache.probing.head_contract import TOKENS, Check, check_head, checks, clusters
from featcache.probing.heads import HEADS, HeadInfo, get_head
from featcache.probing.heads.base import Head
from featcache.probing.heads.info import TRAINED
from featcache.probing.heads.layerwise import LayerwiseHead
from featcache.probing.heads.linear import LinearHead
from featcache.probing.inputs.tokens import InMemoryTokens, read_features
from featcache.probing.protocols.protocol import QUICK, Member
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.fitted import FittedHead
from featcache.probing.training.prediction import predict
from featcache.probing.training.trainer import fit_members
from featcache.store.errors import RequestError

CASES = [
    pytest.param(info, check, id=f"{info.name}-{check.__name__.removeprefix('check_')}")
    for info in HEADS.values()
    if info.listed and info.fits_arrays
    for check in checks(info)
]


@pytest.mark.parametrize(("info", "check"), CASES)
def test_contract(info: HeadInfo, check: Check) -> None:
    check(info)


class MixingHead(LinearHead):
    """Takes the mean of the batch off, so a sample's output depends on its company."""

    def classify(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().classify(inputs - inputs.mean(0))


def test_the_contract_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    info = HEADS["linear"]
    monkeypatch.setattr(HeadInfo, "load", lambda self: MixingHead)
    with pytest.raises(AssertionError, match="linear: check_samples_do_not_mix: outputs depend on the batch"):
        check_head(info)


def features_of(tokens: np.ndarray, head: Head) -> np.ndarray:
    """What a linear head multiplies with, float64."""
    source = InMemoryTokens(tokens).with_transform(head.input_transform)
    return read_features(source, torch.arange(len(tokens)), "cpu").double().numpy()


def fitted(name: str, tokens: np.ndarray, targets: np.ndarray, **options: Any) -> FittedHead:
    job = array_job(get_head(name), tokens.shape[1])
    return fit_head(job, InMemoryTokens(tokens), targets, protocol=QUICK, **options)


def outputs_of(one: FittedHead, tokens: np.ndarray) -> np.ndarray:
    return predict(one.head, InMemoryTokens(tokens), torch.arange(len(tokens)), 64).double().numpy()


@pytest.mark.parametrize("num_samples", [40, 300], ids=["wide", "tall"])
def test_ridge_is_least_squares(num_samples: int) -> None:
    """Against scikit-learn's, whose penalty is on a sum and not a mean over samples."""
    tokens, labels = clusters(num_samples)
    targets = np.stack([labels, labels**2], axis=1) + np.random.default_rng(0).normal(size=(num_samples, 2))
    one = fitted("ridge", tokens, targets)
    x = features_of(tokens, one.head)
    alpha = one.chosen.settings["penalty"] * num_samples * x.var(0).sum()
    reference = Ridge(alpha=alpha).fit(x, targets.astype(np.float32))
    np.testing.assert_allclose(outputs_of(one, tokens), reference.predict(x), atol=2e-3)


@pytest.mark.parametrize("num_samples", [40, 300], ids=["wide", "tall"])
def test_lda_is_that_of_shrunk_covariance(num_samples: int) -> None:
    """Against scikit-learn's with the same shrinkage; classes of equal size, so priors and weights are the same."""
    tokens, labels = clusters(num_samples - num_samples % 3)
    one = fitted("lda", tokens, labels)
    x = features_of(tokens, one.head)
    shrinkage = one.chosen.settings["shrinkage"]
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(x, labels)
    # Theirs standardises first, which makes their shrinkage another one; so the covariance is given.
    centred = x - np.stack([x[labels == label].mean(0) for label in range(3)])[labels]
    covariance = centred.T @ centred / len(x)
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / x.shape[1] * np.eye(x.shape[1])
    means = np.stack([x[labels == label].mean(0) for label in range(3)])
    weight = np.linalg.solve(shrunk, means.T)
    logits = x @ weight - (means.T * weight).sum(0) / 2
    ours = outputs_of(one, tokens)
    np.testing.assert_allclose(ours - ours[:, :1], logits - logits[:, :1], rtol=2e-3, atol=2e-2)
    assert (ours.argmax(1) == reference.predict(x)).mean() > 0.97


def test_knn_votes_like_scikit_learn() -> None:
    tokens, labels = clusters(120)
    noisy = tokens + 3 * np.random.default_rng(5).normal(size=tokens.shape).astype(np.float32)
    one = fitted("knn", noisy, labels)
    settings = one.chosen.settings
    x = features_of(noisy, one.head)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    reference = KNeighborsClassifier(
        int(settings["k"]),
        metric="cosine",
        algorithm="brute",
        weights=lambda distances: np.exp((1 - distances) / settings["temperature"]),
    ).fit(x, labels)
    ours = np.exp(outputs_of(one, noisy))
    np.testing.assert_allclose(ours, reference.predict_proba(x), atol=1e-3)


def test_ncm_takes_the_nearest_mean() -> None:
    tokens, labels = clusters(90)
    one = fitted("ncm", tokens, labels)
    x = features_of(tokens, one.head)
    assert np.array_equal(outputs_of(one, tokens).argmax(1), NearestCentroid().fit(x, labels).predict(x))


def test_logreg_is_the_exact_solver_on_any_transform() -> None:
    """Against scikit-learn's on features that were standardised by hand."""
    tokens, labels = clusters(120)
    protocol = replace(QUICK, input="standard")
    one = fit_head(array_job(get_head("logreg"), TOKENS), InMemoryTokens(tokens), labels, protocol=protocol)
    x = tokens.reshape(len(tokens), -1).astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(features_of(tokens, one.head), x, atol=1e-4)
    reference = LogisticRegression(C=1 / (len(x) * one.chosen.penalty), tol=1e-8, max_iter=5000).fit(
        x, labels
    )
    ours = torch.from_numpy(outputs_of(one, tokens)).softmax(1).numpy()
    np.testing.assert_allclose(ours, reference.predict_proba(x), atol=5e-3)


def test_scalar_mix_starts_as_a_linear_probe_on_the_mean_of_layers() -> None:
    head = get_head("scalar-mix").build(8, 6, 3, num_layers=4).eval()
    x = torch.randn(5, 8, 6)
    mean = x.view(5, 4, 2, 6).mean(1).flatten(1)
    weight, bias = head.get_parameter("classifier.weight")[0], head.get_parameter("classifier.bias")[0]
    torch.testing.assert_close(head(x)[0], mean @ weight.T + bias)


def test_recurrent_runs_torchs_gru() -> None:
    head = get_head("recurrent").build(8, 6, 3, num_layers=4, hidden=5).eval()
    gru = torch.nn.GRU(12, 5, batch_first=True)
    gru.load_state_dict(
        {
            "weight_ih_l0": head.get_parameter("input_proj.weight")[0],
            "bias_ih_l0": head.get_parameter("input_proj.bias")[0],
            "weight_hh_l0": head.get_parameter("hidden_proj.weight")[0],
            "bias_hh_l0": head.get_parameter("hidden_proj.bias")[0],
        }
    )
    x = torch.randn(7, 8, 6)
    layers = torch.nn.functional.layer_norm(x, (6,)).view(7, 4, 12)
    state = gru(layers)[1][0]
    norm = torch.nn.functional.batch_norm(state, torch.zeros(5), torch.ones(5))
    weight, bias = head.get_parameter("classifier.weight")[0], head.get_parameter("classifier.bias")[0]
    torch.testing.assert_close(head(x)[0], norm @ weight.T + bias)


def test_every_probe_of_an_ensemble_is_what_it_is_alone() -> None:
    """With the norm of its gradients out of reach of clipping."""
    tokens, labels = clusters(60)
    settings = {
        "protocol": replace(QUICK, min_epochs=2, min_steps=10, grad_clip_norm=1e9, jitter_probability=0.0),
        "batch_size": 20,
        "seed": 0,
        "num_classes": 3,
    }
    member, rows, targets = Member(1e-2, 0.1, 0.0), torch.arange(60), torch.from_numpy(labels)
    job = array_job(get_head("ensemble"), TOKENS, 2)
    (whole,) = fit_members(job.build, InMemoryTokens(tokens), targets, rows, [member], **settings)
    logits = []
    for layer in range(2):
        part = np.ascontiguousarray(tokens[:, 4 * layer : 4 * layer + 4])

        def build(*size: Any, layer: int = layer) -> Head:
            drawn = job.build(TOKENS, size[1], 3, (0.0,))
            head = LinearHead(*size)
            head.classifier.weight.data.copy_(drawn.get_parameter("weight")[:, layer])
            head.classifier.bias.data.copy_(drawn.get_parameter("bias")[:, layer])
            return head

        (alone,) = fit_members(build, InMemoryTokens(part), targets, rows, [member], **settings)
        logits.append(predict(alone, InMemoryTokens(part), rows, 64))
    mean = torch.stack(logits).mean(0)
    torch.testing.assert_close(predict(whole, InMemoryTokens(tokens), rows, 64), mean, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "info", [info for info in HEADS.values() if info.fitting == TRAINED], ids=lambda info: info.name
)
def test_heads_that_need_layers_say_so(info: HeadInfo) -> None:
    """The registry's `by_layer` decides which heads are given `num_layers`: exactly those of the layer-wise frame."""
    head_class = info.load()
    assert issubclass(head_class, LayerwiseHead) == info.by_layer
    if info.by_layer:
        with pytest.raises(
            RequestError, match=f"the {info.name} head needs the same tokens of every layer; 7 tokens"
        ):
            info.build(7, 6, 3, num_layers=3)
