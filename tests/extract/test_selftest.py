"""The self-test passes on sound backbones and stops every way of reading a wrong token that is known to happen."""

from dataclasses import replace

import pytest
import torch
from open_clip.transformer import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from featcache.extract.backbones.open_clip_vit import OpenClipViT
from featcache.extract.backbones.timm_vit import TimmViT
from featcache.extract.selftest import self_test
from featcache.store.errors import BackboneError

from .tiny import WIDTH, clip_vit, num_hooks, timm_vit

CPU = torch.device("cpu")


class ClaimsSequenceFirst(TimmViT):
    sequence_first = True


class ClaimsBatchFirst(OpenClipViT):
    sequence_first = False


class TapsFirstNorm(TimmViT):
    """Takes the norm of the attention for the norm of the MLP."""

    def norm2(self, block):
        return self.module.get_submodule(f"blocks.{block}.norm1")


class TapsCopies(TimmViT):
    """Taps modules that the model does not run."""

    def norm2(self, block):
        return nn.LayerNorm(WIDTH)


class TapsAnotherFinalNorm(TimmViT):
    """Takes a norm that sees all tokens, but is not the final one."""

    @property
    def final_norm(self):
        return self.module.get_submodule("blocks.2.norm1")


class NormsTwice(TimmViT):
    """Its final norm runs once more after the output, on something else."""

    def forward(self, images):
        output = super().forward(images)
        self.final_norm(images.flatten(1)[:, : 17 * WIDTH].unflatten(1, (17, WIDTH)))
        return output


class OutputThroughAnotherNorm(VisionTransformer):
    """Runs `norm`, but its output comes from another one."""

    def __init__(self, **options):
        super().__init__(**options)
        self.own_norm = nn.LayerNorm(self.embed_dim)

    def forward(self, x):
        x = self.patch_embed(x)
        tokens = self.blocks(self._pos_embed(x))
        self.norm(tokens)
        return self.forward_head(self.own_norm(tokens))


class MixesTheBatch(VisionTransformer):
    """Centres the images of a batch on their mean."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


def with_nan():
    backbone = timm_vit()
    with torch.no_grad():
        backbone.module.blocks[0].attn.proj.bias[0] = float("nan")
    return backbone


def with_registers_as_patches():
    backbone = timm_vit(reg_tokens=4)
    return TimmViT(replace(backbone.loaded, num_prefix_tokens=1))


SOUND = {
    "timm": timm_vit,
    "timm-registers": lambda: timm_vit(reg_tokens=4, no_embed_class=True, init_values=1e-5),
    "clip": lambda: clip_vit(act_layer=QuickGELU),
    "clip-layer-scale": lambda: clip_vit(ls_init_value=0.5),
    "clip-sequence-first": lambda: clip_vit(batch_first=False),
}

# 17 tokens: 16 patches and the class token, in a batch of 3.
WRONG = {
    "axis": (
        lambda: ClaimsSequenceFirst(timm_vit().loaded),
        "the last norm2 gives tokens of shape [3, 17, 16], expected [17, 3, 16].",
    ),
    "axis-of-clip": (
        lambda: ClaimsBatchFirst(clip_vit(batch_first=False).loaded),
        "the last norm2 gives tokens of shape [17, 3, 16], expected [3, 17, 16].",
    ),
    "registers-as-patches": (
        with_registers_as_patches,
        "the last norm2 gives tokens of shape [3, 21, 16], expected [3, 17, 16].",
    ),
    "norm1-for-norm2": (
        lambda: TapsFirstNorm(timm_vit().loaded),
        "the model's output recomputed from the last tap differs by ",
    ),
    "tap-that-is-not-run": (
        lambda: TapsCopies(timm_vit().loaded),
        "the last norm2 is not called in the forward pass.",
    ),
    "final-norm-of-another-place": (
        lambda: TapsAnotherFinalNorm(timm_vit().loaded),
        "the final norm is not called between the last tap and the output.",
    ),
    "final-norm-of-another-input": (
        lambda: NormsTwice(timm_vit().loaded),
        "the final norm's output recomputed from the last tap differs by ",
    ),
    "output-through-another-norm": (
        lambda: timm_vit(model_class=OutputThroughAnotherNorm),
        "the model's output recomputed from the last tap differs by ",
    ),
    "batch-dependence": (
        lambda: timm_vit(model_class=MixesTheBatch),
        "the 'norm2' feature of an image without its batch differs by ",
    ),
    "nan": (with_nan, "differs by nan (largest value nan)."),
}


@pytest.mark.parametrize("name", SOUND)
def test_passes_on_a_sound_backbone(name):
    backbone = SOUND[name]()
    self_test(backbone, CPU)
    assert num_hooks(backbone) == 0


@pytest.mark.parametrize("name", WRONG)
def test_stops_a_backbone_whose_features_would_be_wrong(name):
    make, reason = WRONG[name]
    backbone = make()
    with pytest.raises(BackboneError) as caught:
        self_test(backbone, CPU)
    library = "open_clip" if "clip" in name else "timm"
    assert str(caught.value).startswith(f"self-test of {library}:tiny failed: ")
    assert reason in str(caught.value)
    assert "nothing was written; please report it" in str(caught.value)
    assert num_hooks(backbone) == 0
