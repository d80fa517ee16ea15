"""The fast heads against the obvious ones of oracle.py, with the same parameters on the same inputs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from featcache.probing.heads import HEADS, get_head, pooling
from featcache.probing.heads.attentive import AttentiveHead
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


DROPOUTS = (0.0, 0.3, 0.1)


def make_heads(
    num_tokens: int, width: int, num_heads: int, dtype: torch.dtype
) -> tuple[AttentiveHead, list[ObviousAttentiveHead]]:
    """Members that differ in everything, and the obvious head of each, with the same parameters."""
    torch.manual_seed(1)
    fast = AttentiveHead(num_tokens, width, NUM_CLASSES, DROPOUTS, num_heads=num_heads).to(dtype)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return fast, [obvious_twin(fast, member) for member in range(len(DROPOUTS))]


def obvious_twin(fast: AttentiveHead, member: int) -> ObviousAttentiveHead:
    obvious = ObviousAttentiveHead(fast.width, fast.num_classes, fast.num_heads).to(fast.query.dtype)
    obvious.load_state_dict(fast.member(member).member_state())
    return obvious


def masks(shape: tuple[int, int, int], seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Every member's mask ``[B, H, T]``, from the draws ``[B, T, H]`` that the fast head makes with this seed."""
    draws = torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return [((draws >= p).to(dtype) / (1 - p)).transpose(1, 2) for p in DROPOUTS]


@BOTH_DTYPES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("batch", "num_tokens", "width", "num_heads"), SHAPES)
def test_every_member_equals_the_obvious_head(
    batch: int, num_tokens: int, width: int, num_heads: int, training: bool, dtype: torch.dtype
) -> None:
    """Outputs, all gradients, running statistics and attention, with dropout by a fixed mask in training."""
    fast, twins = make_heads(num_tokens, width, num_heads, dtype)
    x = make_tokens((batch, num_tokens, width), dtype)
    direction = torch.randn(batch, NUM_CLASSES, dtype=dtype, generator=torch.Generator().manual_seed(2))
    logits = fast.train(training)(x, torch.Generator().manual_seed(3))
    (logits * direction).sum().backward()
    for member, (obvious, mask) in enumerate(
        zip(twins, masks((batch, num_tokens, num_heads), 3, dtype), strict=True)
    ):
        expected = obvious.train(training)(x, mask if training else None)
        (expected * direction).sum().backward()
        torch.testing.assert_close(logits[member], expected, **TOLERANCE[dtype])
        for name, parameter in obvious.named_parameters():
            gradient = fast.get_parameter(name).grad
            # The bias of the keys has no effect; its true gradient is 0.
            got = torch.zeros_like(parameter) if gradient is None else gradient[member]
            torch.testing.assert_close(got, parameter.grad, **TOLERANCE[dtype])
        for name in ("running_mean", "running_var"):
            running = getattr(fast.batch_norm, name)[member]
            torch.testing.assert_close(running, getattr(obvious.batch_norm, name), **TOLERANCE[dtype])
        torch.testing.assert_close(fast.attention(x)[member], obvious.attention(x), **TOLERANCE[dtype])
    if not training:
        torch.testing.assert_close(fast(x), fast(x), rtol=0, atol=0)


def test_tiles_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over tokens are formed tile by tile: 3 samples at a time here, with a rest."""
    results = []
    for tile_bytes in (2**24, 3 * 24 * 32 * 8):
        monkeypatch.setitem(pooling.TILE_BYTES, "cpu", tile_bytes)
        fast, _ = make_heads(8, 32, 8, torch.float64)
        fast(
            make_tokens((10, 8, 32), torch.float64), torch.Generator().manual_seed(3)
        ).square().sum().backward()
        results.append({name: p.grad for name, p in fast.named_parameters() if p.grad is not None})
    assert len(results[0]) == len(list(fast.parameters())) - 1
    torch.testing.assert_close(results[0], results[1])


def test_products_in_bfloat16_stay_close() -> None:
    """Under autocast only the products are rounded (8 bits); parameters and gradients stay float32."""
    fast, _ = make_heads(24, 64, 24, torch.float32)
    x = make_tokens((64, 24, 64), torch.float32)
    outputs, gradients = [], []
    for enabled in (False, True):
        fast.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs.append(fast.eval()(x).float())
        outputs[-1].square().mean().backward()
        gradients.append(fast.value_proj.weight.grad.flatten())
    assert gradients[1].dtype == torch.float32
    error = (outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max()
    assert 1e-5 < error < 0.03
    assert F.cosine_similarity(*gradients, dim=0) > 0.995


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
    """Nothing of size tokens x (heads x width) exists, forward or backward, for as many members as there are."""
    batch, num_tokens, width = 64, 12, 24
    projected = batch * num_tokens * 2 * width  # B * T * H * h
    fast = AttentiveHead(num_tokens, width, NUM_CLASSES, (0.1,))
    x = make_tokens((batch, num_tokens, width), torch.float32)
    largest = {}
    for name, head in (("fast", fast), ("obvious", obvious_twin(fast, 0))):
        with LargestTensor() as record:
            head(x).square().sum().backward()
        largest[name] = record.numel
    assert largest["obvious"] >= projected
    # With H = T the pooled tokens [H, B, D] are as large as the input; nothing is larger.
    assert largest["fast"] == batch * num_tokens * width


def test_initialisation_is_that_of_the_obvious_module() -> None:
    """Same names, same draws in the same order; all members alike; query N(0, 0.02^2) by arXiv 2601.09322."""
    torch.manual_seed(5)
    fast = get_head("attentive").build(4, 1024, NUM_CLASSES, (0.0, 0.1))
    torch.manual_seed(5)
    obvious = ObviousAttentiveHead(1024, NUM_CLASSES, num_heads=4)
    expected = {name: tensor for name, tensor in obvious.state_dict().items() if "tracked" not in name}
    for member in range(2):
        torch.testing.assert_close(fast.member(member).member_state(), expected, rtol=0, atol=0)
    assert fast.get_parameter("query").std().item() == pytest.approx(0.02, rel=0.1)
    # C.f. nn.Linear: uniform within 1 / sqrt(fan in).
    assert fast.get_parameter("key_proj.weight").abs().max().item() == pytest.approx(1024**-0.5, rel=1e-3)


def test_linear_head() -> None:
    torch.manual_seed(5)
    fast = get_head("linear").build(3, 16, NUM_CLASSES, (0.0, 0.0))
    torch.manual_seed(5)
    obvious = ObviousLinearHead(3, 16, NUM_CLASSES)
    x = make_tokens((4, 3, 16), torch.float32)
    outputs = fast(x)
    expected = obvious(x)
    (outputs.square().sum() + expected.square().sum()).backward()
    for member in range(2):
        torch.testing.assert_close(outputs[member], expected)
        for name, parameter in obvious.named_parameters():
            torch.testing.assert_close(fast.get_parameter(name).grad[member], parameter.grad)


def test_wrong_requests() -> None:
    with pytest.raises(
        RequestError,
        match=r"token width \(16\) among its heads \(24\), .* choose fewer heads or fewer layers",
    ):
        get_head("attentive").build(24, 16, NUM_CLASSES)
    with pytest.raises(RequestError, match=r"head 'linear' has no dropout, so 0\.1 cannot be set; use 0"):
        get_head("linear").build(1, 16, NUM_CLASSES, (0.0, 0.1))
    with pytest.raises(UnknownNameError, match=r"unknown head 'attentif'; did you mean attentive\?"):
        get_head("attentif")


def test_registry_defaults() -> None:
    """Defaults of the design: the baseline is the last layer's CLS, fusion takes CLS and AP of all layers."""
    defaults = {name: (info.default_layers, info.default_tokens) for name, info in HEADS.items()}
    others = dict.fromkeys(("linear", "knn", "ncm", "zero-shot"), ("last", ("cls",)))
    others["best-layer"] = ("all", ("cls",))
    assert defaults == {name: others.get(name, ("all", ("cls", "ap"))) for name in HEADS}
