"""Heads, solver and probing on GPUs, pretended ones where the machine has none: results are those of the CPU."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.probing.head_contract import LAYERS, SHORT, TOKENS, WIDTH, clusters
from featcache.probing.heads import HEADS
from featcache.probing.heads.linear import LinearHead
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import Member, Plan
from featcache.probing.requests.request import ProbeRequest
from featcache.probing.run import probe
from featcache.probing.solver.logistic import fit_logistic
from featcache.probing.training.array_fitting import array_job, fit_head
from featcache.probing.training.prediction import predict
from featcache.probing.training.trainer import fit_members
from support.caches import make_content, make_plan, write_cache

# Without jitter, which a CPU draws in several streams and a GPU in one, every draw is the same on both.
PROTOCOL = replace(
    SHORT, min_epochs=2, min_steps=8, learning_rates=(1e-2,), weight_decays=(1e-4,), jitter_probability=0.0
)
TARGETS = ("single-label", "multi-label", "regression")
INPUTS = ("l2", "standard")
# The suite takes the single labels and one input transform; `make stress` takes all.
EVERYTHING = bool(os.environ.get("FEATCACHE_TEST_EVERY_HEAD"))


def cases():
    for info in HEADS.values():
        if info.listed and info.fits_arrays:
            for target in TARGETS if EVERYTHING else TARGETS[:1]:
                for transform in INPUTS if EVERYTHING and info.name != "auto" else INPUTS[:1]:
                    if target in info.kinds:
                        yield pytest.param(info, target, transform, id=f"{info.name}-{target}-{transform}")


def targets_of(target, labels):
    return {
        "single-label": labels,
        "multi-label": np.stack([labels == 0, labels != 1], 1).astype(np.uint8),
        "regression": 100 + 10 * np.stack([labels, -labels], 1).astype(np.float32),
    }[target]


def outputs_on(device, info, targets, transform, precision="fp32"):
    """Choose and fit a head on a device; its outputs, on the CPU, and itself."""
    tokens, _ = clusters()
    source = InMemoryTokens(torch.from_numpy(tokens).half(), device)
    job, protocol = array_job(info, TOKENS, LAYERS), replace(PROTOCOL, input=transform)
    fitted = fit_head(job, source, targets, protocol=protocol, device=device, precision=precision)
    return predict(fitted.head, source, torch.arange(len(tokens)), 64).cpu(), fitted.head


@pytest.mark.parametrize(("info", "target", "transform"), list(cases()))
def test_every_head_gives_the_outputs_of_the_cpu(gpus, info, target, transform):
    targets = targets_of(target, clusters()[1])
    device = gpus.names[-1]
    outputs, head = outputs_on(device, info, targets, transform)
    assert {str(tensor.device) for tensor in head.state_dict().values()} == {device}
    wanted, _ = outputs_on("cpu", info, targets, transform)
    if gpus.pretended:
        torch.testing.assert_close(outputs, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
    elif target == "single-label":
        assert (outputs.argmax(1) == wanted.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["attentive", "linear", "mlp"])
def test_products_in_bfloat16(gpus, name):
    labels = clusters()[1]
    outputs, _ = outputs_on(gpus.names[0], HEADS[name], labels, "l2", "bf16")
    wanted, _ = outputs_on("cpu", HEADS[name], labels, "l2", "fp32")
    assert (outputs.argmax(1) == wanted.argmax(1)).float().mean() > 0.9


def test_the_solver_finds_the_minimum_of_the_cpu(gpus):
    tokens, labels = clusters()
    features, labels = torch.from_numpy(tokens).flatten(1), torch.from_numpy(labels)
    device = gpus.names[-1]
    fits = fit_logistic(features.to(device), labels.to(device), 3, [1e-1, 1e-3])
    for fit, wanted in zip(fits, fit_logistic(features, labels, 3, [1e-1, 1e-3]), strict=True):
        assert fit.certificate.converged
        assert str(fit.weight.device) == device
        assert fit.certificate.objective == pytest.approx(wanted.certificate.objective, rel=1e-4)
        torch.testing.assert_close(fit.weight.cpu(), wanted.weight, rtol=0, atol=2e-2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    plan = make_plan({"train": 120, "test": 60}, num_layers=4, width=WIDTH, num_classes=3, batch_size=60)
    return write_cache(tmp_path_factory.mktemp("probed") / "cache", plan, make_content(plan))


@pytest.mark.parametrize("memory", [None, 24_000], ids=["in memory", "streamed"])
def test_probing_a_grid(tmp_path, gpus, cache, memory):
    """Two heads by two layer sets, through `probe`: sweep, held-out scores, test scores. The smaller memory streams `quarters`."""
    protocol = tmp_path / "short.toml"
    protocol.write_text('base = "quick"\nmin_epochs = 1\nmin_steps = 6\nlearning_rates = [1e-2]\n')
    found = {}
    for device in ("cpu", gpus.names[-1]):
        for layers in ("last", "quarters"):
            out = tmp_path / device.replace(":", "")
            request = ProbeRequest(
                heads=("linear", "attentive"),
                layers=layers,
                tokens="cls+ap",
                protocol=str(protocol),
                out=out,
                memory=memory,
            )
            found[device, layers] = probe(cache, request, device=torch.device(device))
    for layers in ("last", "quarters"):
        wanted, rows = found["cpu", layers], found[gpus.names[-1], layers]
        assert [(row.head, row.layers) for row in rows] == [(row.head, row.layers) for row in wanted]
        # The jitter differs by device, so scores are near, not the same.
        for row, expected in zip(rows, wanted, strict=True):
            assert row.score == pytest.approx(expected.score, abs=0.25)


# Planted faults: each is what a head or a trainer would do if one line of it were wrong.


class ForgetfulHead(LinearHead):
    """Keeps a tensor that is neither a parameter nor a buffer, so `to` passes it over."""

    def __init__(self, num_tokens, width, *arguments):
        super().__init__(num_tokens, width, *arguments)
        self.scale = torch.full([num_tokens * width], 0.5)

    def classify(self, inputs):
        return super().classify(inputs * self.scale)


class HostDraws(LinearHead):
    """Draws noise on the device from a generator of the CPU."""

    def classify(self, inputs):
        noise = torch.empty_like(inputs).normal_(generator=torch.Generator().manual_seed(0))
        return super().classify(inputs + noise)


class HostValues(LinearHead):
    """Takes values to numpy in the middle of the pass."""

    def classify(self, inputs):
        return super().classify(inputs * float(np.abs(inputs.detach().numpy()).max()))


def train(build, device, tokens_on):
    tokens, labels = clusters()
    source = InMemoryTokens(torch.from_numpy(tokens).half(), tokens_on)
    return fit_members(
        build,
        source,
        torch.from_numpy(labels),
        torch.arange(len(tokens)),
        [Member(1e-2, 1e-4, 0.0)] * 2,
        protocol=PROTOCOL,
        batch_size=32,
        seed=0,
        num_classes=3,
        plan=Plan(32, 3, 1),
        device=device,
    )


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (ForgetfulHead, "at least two devices, cuda:0 and cpu"),
        (HostDraws, "Expected a 'cuda:0' device type for generator but found 'cpu'"),
        (HostValues, "can't convert cuda:0 device type tensor to numpy"),
    ],
)
def test_a_head_that_forgets_the_device_is_seen(pretended, head, message):
    train(head, "cpu", "cpu")  # where nothing is wrong with it
    with pytest.raises((RuntimeError, TypeError), match=message):
        train(head, "cuda:0", "cuda:0")


def test_tokens_may_live_elsewhere(pretended):
    train(LinearHead, "cuda:0", "cpu")
    train(LinearHead, "cuda:1", "cuda:0")
