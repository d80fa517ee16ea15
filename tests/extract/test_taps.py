"""The features of the taps against the forward passes of oracle.py, on the same random weights and images."""

import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import nn

from featcache.extraction.backbones.base import TapPoint, TokenLayout
from featcache.extraction.backbones.timm_vit import TimmViT
from featcache.extraction.forward_pass.taps import Taps, pool_tokens
from featcache.store.token_groups import STATISTICS

from .tiny import (
    LAYERS,
    WIDTH,
    clip_vit,
    clip_vit_oracle,
    default_arrays,
    noise,
    num_hooks,
    timm_oracle,
    timm_vit,
)

KINDS = [("cls", "ap"), ("ap", "cls"), ("ap",)]

BACKBONES = {
    "timm": (timm_vit, timm_oracle),
    "timm-head-and-layer-scale": (lambda: timm_vit(num_classes=5, init_values=0.5), timm_oracle),
    "timm-norm-before-the-blocks": (lambda: timm_vit(pre_norm=True), timm_oracle),
    "timm-registers": (lambda: timm_vit(reg_tokens=4), timm_oracle),
    # As DINOv2 with registers: they and the class token have no position embedding.
    "timm-registers-without-position": (
        lambda: timm_vit(reg_tokens=4, no_embed_class=True, init_values=1e-5),
        timm_oracle,
    ),
    "clip": (clip_vit, clip_vit_oracle()),
    "clip-quick-gelu": (lambda: clip_vit(act_layer=QuickGELU), clip_vit_oracle(QuickGELU)),
    "clip-layer-scale": (lambda: clip_vit(ls_init_value=0.5), clip_vit_oracle()),
    "clip-sequence-first": (lambda: clip_vit(batch_first=False), clip_vit_oracle()),
}


def features(backbone, images, kinds=("cls", "ap")):
    with torch.inference_mode(), Taps(backbone, default_arrays(backbone, kinds)) as taps:
        return taps.forward(images)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kinds", KINDS, ids=",".join)
def test_features_are_the_oracles(name, kinds):
    make, oracle = BACKBONES[name]
    backbone, images = make(), noise(4)
    got = features(backbone, images, kinds)
    wanted = oracle(backbone, images)
    prefix = 5 if "registers" in name else 1

    def pooled(tokens):
        kind = {"cls": tokens[:, 0], "ap": tokens[:, prefix:].mean(1)}
        return torch.stack([kind[k] for k in kinds], 1)

    assert got.keys() == {"norm2", "final"}
    assert got["norm2"].shape == (4, LAYERS, len(kinds), WIDTH)
    torch.testing.assert_close(
        got["norm2"],
        torch.stack([pooled(tokens) for tokens in wanted.taps["norm2"]], 1),
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(got["final"], pooled(wanted.final)[:, None], rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.forward(images), wanted.output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_final_is_what_timm_calls_its_normalised_last_intermediate(registers):
    backbone = timm_vit(reg_tokens=registers)
    images = noise(3)
    with torch.inference_mode():
        [(patches, prefix)] = backbone.module.forward_intermediates(
            images, indices=1, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    final = features(backbone, images)["final"]
    assert prefix.shape[1] == 1 + registers
    torch.testing.assert_close(final[:, 0, 0], prefix[:, 0])
    torch.testing.assert_close(final[:, 0, 1], patches.mean(1))


def test_sequence_first_equals_batch_first():
    batch_first, sequence_first = clip_vit(), clip_vit(batch_first=False)
    sequence_first.module.load_state_dict(batch_first.module.state_dict())
    assert (batch_first.sequence_first, sequence_first.sequence_first) == (False, True)
    images = noise(3)
    one, other = features(batch_first, images), features(sequence_first, images)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["timm-registers", "clip", "clip-sequence-first"])
def test_a_batch_of_one(name):
    backbone, images = BACKBONES[name][0](), noise(3)
    together, alone = features(backbone, images), features(backbone, images[1:2])
    for tap in together:
        torch.testing.assert_close(alone[tap][0], together[tap][1], rtol=1e-5, atol=1e-5)


def test_pooling_is_in_float32():
    """The mean of 1 and 1 + 2**-7 is no bfloat16 number."""
    tokens = torch.tensor([[[0.0], [1.0], [1 + 2**-7]]], dtype=torch.bfloat16)
    assert pool_tokens(tokens, TokenLayout(True, 0, (1, 2)), "pooled", ("cls", "ap")).flatten().tolist() == [
        0,
        1 + 2**-8,
    ]


def test_statistics_are_those_of_the_patches_alone():
    """Against numpy in float64; class and register tokens would move every one of them."""
    layout = TokenLayout(True, 2, (2, 3))
    tokens = torch.randn(5, 9, 7, generator=torch.Generator().manual_seed(0)) + 0.2
    tokens[:, :3] = 1e3
    patches = tokens[:, 3:].double().numpy()
    expected = {
        "sd": patches.std(1),
        "max": patches.max(1),
        "min": patches.min(1),
        "gem": (patches.clip(1e-6) ** 3).mean(1) ** (1 / 3),
    }
    assert expected.keys() == {*STATISTICS}
    for name, values in expected.items():
        pooled = pool_tokens(tokens, layout, name, ())
        assert pooled.dtype == torch.float32
        np.testing.assert_allclose(pooled.numpy(), values[:, None], rtol=2e-6, atol=1e-7)


def test_the_deviation_of_large_values_keeps_its_digits():
    """Channels with a mean of hundreds and a deviation of one exist in every large model."""
    tokens = torch.randn(1, 257, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 500
    pooled = pool_tokens(tokens.float(), TokenLayout(True, 0, (16, 16)), "sd", ())
    np.testing.assert_allclose(pooled[:, 0].numpy(), tokens[:, 1:].numpy().std(1), rtol=1e-4)


def test_hooks_are_gone_after_the_with():
    backbone = timm_vit()
    with Taps(backbone, default_arrays(backbone)) as taps:
        assert num_hooks(backbone) == LAYERS + 1
        taps.forward(noise(1))
    assert num_hooks(backbone) == 0
    with pytest.raises(RuntimeError), Taps(backbone, default_arrays(backbone)) as taps:
        taps.forward(torch.zeros(1, 2, 32, 32))  # two channels
    assert num_hooks(backbone) == 0


def test_a_tap_that_is_not_called_raises():
    class Stray(TimmViT):
        def tap_point(self, tap, block):
            return TapPoint(nn.LayerNorm(WIDTH), WIDTH) if block == 1 else super().tap_point(tap, block)

    stray = Stray(timm_vit().loaded)
    with (
        Taps(stray, default_arrays(stray)) as taps,
        pytest.raises(RuntimeError, match="was not called"),
    ):
        taps.forward(noise(1))


def test_values_of_an_earlier_pass_never_stand_in():
    backbone = timm_vit()
    with torch.inference_mode(), Taps(backbone, default_arrays(backbone)) as taps:
        taps.forward(noise(1))
        backbone.module.blocks[1].norm2 = nn.LayerNorm(WIDTH)  # the hook is on the old one
        with pytest.raises(RuntimeError, match="was not called"):
            taps.forward(noise(1))
