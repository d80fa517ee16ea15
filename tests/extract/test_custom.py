"""A module of one's own as a backbone: its taps are those of its parts, and a wrong name or shape is told in one line."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from featcache.extraction.backbones.base import TokenLayout
from featcache.extraction.backbones.custom import Parts, custom_backbone
from featcache.extraction.forward_pass.selftest import self_test
from featcache.store.errors import BackboneError, UnknownNameError
from featcache.store.inventory import TAPS

from .test_families import assert_same
from .tiny import SIZE, WIDTH, noise, randomise, record, timm_vit, to_tensor

CPU = torch.device("cpu")
LAYOUT = TokenLayout(True, 0, (4, 4))
TIMM_PARTS = Parts(
    blocks="blocks",
    final_norm="norm",
    taps={"norm1": "norm1", "attn": "attn", "norm2": "norm2", "mlp": "mlp.fc2:input"},
)


def make(module, parts=TIMM_PARTS, layout=LAYOUT, **options):
    settings = {"name": "mine", "input_size": SIZE, "transform": to_tensor, "preprocessing": {"size": SIZE}}
    return custom_backbone(module, parts, layout, **(settings | options))


@pytest.mark.parametrize("head", [False, True])
def test_a_custom_backbone_sees_what_the_librarys_sees(head):
    known, images = timm_vit(), noise(2)
    model = known.module
    custom = make(model, head=model.forward_head if head else None)
    assert custom.taps == TAPS
    spec = custom.spec
    assert (spec.architecture, spec.num_layers, spec.width, spec.input_size) == ("custom:mine", 3, 16, 32)
    assert spec.preprocessing == {"size": SIZE}
    assert custom.tap_point("mlp", 2).width == 4 * WIDTH
    self_test(custom, CPU)
    (got, none), (wanted, _) = record(custom, images), record(known, images)
    assert none is None
    assert_same(got, wanted, TAPS)
    # The digest is that of the weights, so the key follows them.
    with torch.no_grad():
        model.norm.bias += 1
    assert make(model).spec.weights_digest != spec.weights_digest


# A vision transformer after the manner of another library: keywords, tuples and an output that is no tensor.


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2)  # [N, B, D]
        self.grow, self.shrink = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)

    def forward(self, *, hidden_states):
        normed = self.before(hidden_states)
        hidden_states = hidden_states + self.attention(normed, normed, normed, need_weights=False)[0]
        hidden = self.shrink(self.grow(self.after(hidden_states)).relu())
        return (hidden_states + hidden, None)


@dataclass
class Output:
    pooled: Tensor


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.registers = nn.Parameter(torch.zeros(1, 2, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.pooler = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, pixel_values):
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.registers.expand(len(patches), -1, -1), patches], 1).transpose(0, 1)
        for layer in self.layers:
            (tokens, _) = layer(hidden_states=tokens)
        return Output(self.pooler(self.norm(tokens.transpose(0, 1)).mean(1)).tanh())


OTHER_PARTS = Parts(
    blocks=["layers.0", "layers.1"],
    final_norm="norm",
    taps={"norm2": "after", "norm1": "before", "attn": "attention", "mlp": "shrink:input"},
)
OTHER = {"forward": lambda module, images: module(images).pooled, "sequence_first": True}
OTHER_LAYOUT = TokenLayout(False, 2, (4, 4))


def test_a_model_after_the_manner_of_another_library():
    model = randomise(Model())
    backbone = make(model, OTHER_PARTS, OTHER_LAYOUT, **OTHER)
    self_test(backbone, CPU)
    images = noise(2)
    got, _ = record(backbone, images)
    with torch.inference_mode():
        patches = model.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([model.registers.expand(2, -1, -1), patches], 1)
        for index, layer in enumerate(model.layers):
            normed = layer.before(tokens).transpose(0, 1)
            mixed = layer.attention(normed, normed, normed)[0].transpose(0, 1)
            middle = tokens + mixed
            hidden = layer.grow(layer.after(middle)).relu()
            tokens = middle + layer.shrink(hidden)
            wanted = {"norm1": normed.transpose(0, 1), "attn": mixed, "norm2": layer.after(middle)}
            for tap, expected in {**wanted, "mlp": hidden, "block": tokens}.items():
                torch.testing.assert_close(got.taps[tap][index], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.final, model.norm(tokens), rtol=1e-4, atol=1e-5)


def test_an_embedding_and_fewer_taps():
    backbone = make(
        randomise(Model()),
        replace(OTHER_PARTS, taps={"attn": "attention"}, embedding="pooler"),
        OTHER_LAYOUT,
        **OTHER,
    )
    assert backbone.taps == ("block", "attn")
    assert record(backbone, noise(2))[1].shape == (2, backbone.embedding_point.width) == (2, 5)
    with pytest.raises(
        BackboneError, match=r"the blocks of custom:mine have no tap 'norm2'; they have block, attn$"
    ):
        backbone.tap_point("norm2", 0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"blocks": "block"}, "unknown part of mine: 'block'; did you mean blocks"),
        ({"blocks": "norm"}, "mine: 'norm' holds no blocks"),
        ({"final_norm": "norms"}, "unknown part of mine: 'norms'; did you mean norm"),
        ({"embedding": "pooler"}, "unknown part of mine: 'pooler'"),
        ({"taps": {"norm3": "norm2"}}, "unknown tap 'norm3'; did you mean norm2, norm1?"),
        ({"taps": {"mlp": "mlp.fc3:input"}}, "unknown part of mine.blocks.0: 'mlp.fc3'; did you mean mlp.fc"),
        ({"final_norm": "patch_embed.proj"}, "mine: 'patch_embed.proj' gives [2, 16, 4, 4] for 2 images, expected [2, 17, 'width']"),
        ({"embedding": "norm"}, "mine: 'norm' gives [2, 17, 16] for 2 images, expected [2, 'width']"),
        ({"embedding": "unused"}, "mine: 'unused' is not called for 2 images"),
    ],
)  # fmt: skip
def test_parts_that_do_not_exist_or_are_something_else(parts, message):
    model = timm_vit().module
    model.unused = nn.Identity()
    with pytest.raises((UnknownNameError, BackboneError), match=re.escape(message)):
        make(model, replace(TIMM_PARTS, **parts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": TokenLayout(True, 4, (4, 4))}, "mine: 'blocks.0.norm2' gives [2, 17, 16] for 2 images, expected [2, 21, 'width']"),
        ({"sequence_first": True}, "mine: 'blocks.0.norm2' gives [2, 17, 16] for 2 images, expected [17, 2, 'width']"),
        ({"input_size": 31}, "mine does not run on images of 31 x 31 pixels (Input height (31) doesn't match model (32)"),
    ],
)  # fmt: skip
def test_tokens_that_are_not_as_said(options, message):
    with pytest.raises(BackboneError, match=re.escape(message)):
        make(timm_vit().module, **options)


def test_torchs_own_encoder():
    """Without hooks, torch runs its layers as one fused function; with them, the parts are called."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 40, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)

        def forward(self, images):
            return self.encoder(images.flatten(1)[:, : 17 * WIDTH].unflatten(1, (17, WIDTH)))[:, 0]

    taps = {"norm1": "norm1", "attn": "self_attn", "norm2": "norm2", "mlp": "linear2:input"}
    backbone = make(
        randomise(Encoder()), Parts("encoder.layers", "encoder.norm", taps), head=lambda tokens: tokens[:, 0]
    )
    self_test(backbone, CPU)
    layer = backbone.module.encoder.layers[1]
    got, _ = record(backbone, noise(2))
    with torch.inference_mode():
        middle = got.taps["block"][0] + got.taps["attn"][1]
        torch.testing.assert_close(got.taps["norm2"][1], layer.norm2(middle), rtol=1e-4, atol=1e-5)
        added = layer.linear2(got.taps["mlp"][1])
    torch.testing.assert_close(got.taps["block"][1], middle + added, rtol=1e-4, atol=1e-5)


def test_preprocessing_is_part_of_the_key_and_must_be_json():
    with pytest.raises(TypeError, match="not JSON serializable"):
        make(timm_vit().module, preprocessing={"size": object()})
