"""The fast heads against the obvious ones of oracle.py, with the same parameters on the same inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from featcache.probe.heads import HEADS, get_head
from featcache.probe.heads.attentive import AttentiveHead
from featcache.store.errors import RequestError, UnknownNameError

from .oracle import ObviousAttentiveHead, ObviousLinearHead

NUM_CLASSES = 5
# B, T, D, H: one head per token, D not divisible by H, a single token, all patches of a layer with 8 heads.
SHAPES = [(6, 8, 32, 8), (7, 13, 50, 13), (5, 24, 48, 24), (4, 1, 16, 1), (16, 257, 64, 8)]
# Both sides compute the same sums in another order, so they differ by rounding alone. In float32 that shows most
# in the gradient of the key norm's bias, a difference of large terms whose true value is 0.
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
    torch.float32: {"rtol": 1e-3, "atol": 2e-4},
}
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def make_tokens(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Unit tokens under the jitter of the protocol, as the heads see them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = F.normalize(torch.randn(shape, generator=generator, dtype=torch.float64) + 0.3, dim=-1)
    return (tokens + 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def make_pair(
    num_tokens: int, width: int, num_heads: int, dtype: torch.dtype, dropout: float = 0.0
) -> tuple[AttentiveHead, ObviousAttentiveHead]:
    """Both heads with the same parameters, all moved away from their initial zeros and ones."""
    torch.manual_seed(1)
    fast = AttentiveHead(num_tokens, width, NUM_CLASSES, dropout, num_heads=num_heads).to(dtype)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    obvious = ObviousAttentiveHead(width, NUM_CLASSES, num_heads).to(dtype)
    obvious.load_state_dict(fast.state_dict())
    return fast, obvious


def make_mask(shape: tuple[int, int, int], dropout: float, seed: int, dtype: torch.dtype) -> Tensor:
    """The mask that the fast head draws from a generator with this seed."""
    keep = torch.empty(shape, dtype=dtype)
    return keep.bernoulli_(1 - dropout, generator=torch.Generator().manual_seed(seed)) / (1 - dropout)


def gradients(head: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in head.named_parameters()}


@BOTH_DTYPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("batch", "num_tokens", "width", "num_heads"), SHAPES)
def test_outputs_and_all_gradients(
    batch: int, num_tokens: int, width: int, num_heads: int, training: bool, dtype: torch.dtype
) -> None:
    fast, obvious = make_pair(num_tokens, width, num_heads, dtype)
    x = make_tokens((batch, num_tokens, width), dtype)
    direction = torch.randn(batch, NUM_CLASSES, dtype=dtype, generator=torch.Generator().manual_seed(2))
    outputs = []
    for head in (fast, obvious):
        head.train(training)
        outputs.append(head(x))
        (outputs[-1] * direction).sum().backward()
    torch.testing.assert_close(*outputs, **TOLERANCE[dtype])
    torch.testing.assert_close(gradients(fast), gradients(obvious), **TOLERANCE[dtype])
    torch.testing.assert_close(fast.attention(x), obvious.attention(x), **TOLERANCE[dtype])
    torch.testing.assert_close(dict(fast.named_buffers()), dict(obvious.named_buffers()), **TOLERANCE[dtype])


@BOTH_DTYPES
@pytest.mark.parametrize(("batch", "num_tokens", "width", "num_heads"), SHAPES)
def test_dropout_with_a_fixed_mask(
    batch: int, num_tokens: int, width: int, num_heads: int, dtype: torch.dtype
) -> None:
    """The weights no longer sum to 1, so the bias of the value norm must count as often as they do."""
    fast, obvious = make_pair(num_tokens, width, num_heads, dtype, dropout=0.3)
    fast.generator = torch.Generator().manual_seed(3)
    x = make_tokens((batch, num_tokens, width), dtype)
    mask = make_mask((batch, num_heads, num_tokens), 0.3, 3, dtype)
    outputs = [fast(x), obvious(x, mask)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs, **TOLERANCE[dtype])
    torch.testing.assert_close(gradients(fast), gradients(obvious), **TOLERANCE[dtype])
    fast.eval()
    assert torch.equal(fast(x), fast(x)), "no dropout in eval mode"


# 50 updates compound the rounding of single steps.
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, {"rtol": 1e-7, "atol": 1e-9}), (torch.float32, {"rtol": 5e-3, "atol": 5e-4})],
)
def test_training_trajectory(dtype: torch.dtype, tolerance: dict[str, float]) -> None:
    """50 steps of AdamW with dropout: losses on the way and outputs at the end."""
    fast, obvious = make_pair(8, 32, 8, dtype, dropout=0.1)
    x = make_tokens((40, 8, 32), dtype)
    labels = torch.arange(40) % NUM_CLASSES
    losses: dict[torch.nn.Module, list[float]] = {fast: [], obvious: []}
    for head, history in losses.items():
        optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=1e-2)
        for step in range(50):
            if head is fast:
                fast.generator = torch.Generator().manual_seed(step)
                logits = fast(x)
            else:
                logits = obvious(x, make_mask((40, 8, 8), 0.1, step, dtype))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
    assert losses[fast][-1] < 0.5 * losses[fast][0], "it should learn something"
    assert losses[fast] == pytest.approx(losses[obvious], rel=tolerance["rtol"], abs=tolerance["atol"])
    torch.testing.assert_close(fast.eval()(x), obvious.eval()(x), **tolerance)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns, forward or backward."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_projected_tokens_are_materialised() -> None:
    batch, num_tokens, width, num_heads = 64, 12, 24, 12
    projected = batch * num_tokens * 2 * width  # B * T * H * h
    fast, obvious = make_pair(num_tokens, width, num_heads, torch.float32, dropout=0.1)
    x = make_tokens((batch, num_tokens, width), torch.float32)
    largest = {}
    for name, head in (("fast", fast), ("obvious", obvious)):
        with LargestTensor() as record:
            head(x).square().sum().backward()
        largest[name] = record.numel
    assert largest["obvious"] >= projected
    assert largest["fast"] < projected
    # With H = T the pooled tokens [H, B, D] are as large as the input; nothing is larger.
    assert largest["fast"] == batch * num_tokens * width


def test_initialisation_is_that_of_the_obvious_module() -> None:
    """Same names, same draws in the same order; query N(0, 0.02^2) by arXiv 2601.09322."""
    torch.manual_seed(5)
    fast = get_head("attentive").build(4, 1024, NUM_CLASSES)
    torch.manual_seed(5)
    obvious = ObviousAttentiveHead(1024, NUM_CLASSES, num_heads=4)
    torch.testing.assert_close(fast.state_dict(), obvious.state_dict(), rtol=0, atol=0)
    assert fast.get_parameter("query").std().item() == pytest.approx(0.02, rel=0.1)
    # C.f. nn.Linear: uniform within 1 / sqrt(fan in).
    assert fast.get_parameter("key_proj.weight").abs().max().item() == pytest.approx(1024**-0.5, rel=1e-3)


def test_attention_ignores_dropout_and_sums_to_one() -> None:
    fast, _ = make_pair(8, 32, 8, torch.float64, dropout=0.3)
    weights = fast.attention(make_tokens((3, 8, 32), torch.float64))
    assert weights.shape == (3, 8, 8)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 8, dtype=torch.float64))


def test_linear_head() -> None:
    torch.manual_seed(5)
    fast = get_head("linear").build(3, 16, NUM_CLASSES)
    torch.manual_seed(5)
    obvious = ObviousLinearHead(3, 16, NUM_CLASSES)
    x = make_tokens((4, 3, 16), torch.float32)
    outputs = [fast(x), obvious(x)]
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    torch.testing.assert_close(gradients(fast), gradients(obvious), rtol=0, atol=0)


def test_wrong_requests() -> None:
    with pytest.raises(
        RequestError,
        match=r"token width \(16\) among its heads \(24\), .* choose fewer heads or fewer layers",
    ):
        get_head("attentive").build(24, 16, NUM_CLASSES)
    with pytest.raises(RequestError, match=r"head 'linear' has no dropout, so 0\.1 cannot be set; use 0"):
        get_head("linear").build(1, 16, NUM_CLASSES, dropout=0.1)
    with pytest.raises(UnknownNameError, match=r"unknown head 'attentif'; did you mean attentive\?"):
        get_head("attentif")


def test_registry_defaults() -> None:
    """Defaults of the design: the baseline is the last layer's CLS, fusion takes CLS and AP of all layers."""
    assert {name: (info.default_layers, info.default_tokens) for name, info in HEADS.items()} == {
        "linear": ("last", ("cls",)),
        "attentive": ("all", ("cls", "ap")),
    }
