"""The self-test passes on sound backbones and stops every way of reading a wrong token that is known to happen."""

from dataclasses import replace

import pytest
import torch
from open_clip.transformer import QuickGELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from featcache.extraction.backbones.base import TapPoint, TokenLayout
from featcache.extraction.backbones.open_clip_vit import OpenClipViT
from featcache.extraction.backbones.timm_vit import TimmViT
from featcache.extraction.forward_pass.selftest import self_test
from featcache.store.errors import BackboneError

from .tiny import WIDTH, clip_vit, num_hooks, timm_vit

CPU = torch.device("cpu")


class ClaimsSequenceFirst(TimmViT):
    sequence_first = True


class ClaimsBatchFirst(OpenClipViT):
    sequence_first = False


class TapsFirstNorm(TimmViT):
    """Takes the norm of the attention for the norm of the MLP."""

    def tap_point(self, tap, block):
        return super().tap_point("norm1" if tap == "norm2" else tap, block)


class TapsCopies(TimmViT):
    """Taps modules that the model does not run."""

    def tap_point(self, tap, block):
        return TapPoint(nn.LayerNorm(WIDTH), WIDTH) if tap == "norm2" else super().tap_point(tap, block)


class TapsScaledAttention(TimmViT):
    """Takes the attention after LayerScale for the attention."""

    def tap_point(self, tap, block):
        return (
            TapPoint(self.module.blocks[block].ls1, WIDTH) if tap == "attn" else super().tap_point(tap, block)
        )


class TapsBeforeActivation(TimmViT):
    """Takes what enters the MLP's activation for what leaves it."""

    def tap_point(self, tap, block):
        point = super().tap_point(tap, block)
        return TapPoint(self.module.blocks[block].mlp.fc1, point.width) if tap == "mlp" else point


class TapsInputOfFirstNorm(TimmViT):
    """Takes what enters the first norm for what leaves it."""

    def tap_point(self, tap, block):
        point = super().tap_point(tap, block)
        return TapPoint(point.module, WIDTH, "input") if tap == "norm1" else point


class OfUnknownForm(TimmViT):
    """A backbone whose blocks are not known, so that only order and effect of its taps can be checked."""

    def block_checks(self, block, entered, taps):
        return []

    def output_from_final(self, tokens):
        return None


class SwapsNorms(OfUnknownForm):
    """Takes each norm for the other."""

    def tap_point(self, tap, block):
        return super().tap_point({"norm1": "norm2", "norm2": "norm1"}.get(tap, tap), block)


class Watching(Block):
    """Runs its second norm and goes on without it."""

    def forward(self, x, attn_mask=None, is_causal=False):
        x = x + self.attn(self.norm1(x))
        self.norm2(x)
        return x + self.mlp(x)


# The form of a timm block is told by the name of its class.
Watching.__name__ = "Block"


class DropsFinal(VisionTransformer):
    """Runs its final norm and gives something else."""

    def forward_head(self, x, pre_logits=False):
        return torch.ones(len(x), self.embed_dim)


class OtherEmbedding(TimmViT):
    """Takes the class token for the output of the pooling head."""

    @property
    def embedding_point(self):
        return TapPoint(self.module.norm, WIDTH)


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
    return TimmViT(replace(backbone.loaded, layout=TokenLayout(True, 0, (4, 4))))


SOUND = {
    "timm": timm_vit,
    "timm-registers": lambda: timm_vit(reg_tokens=4, no_embed_class=True, init_values=1e-5),
    "timm-of-unknown-form": lambda: OfUnknownForm(timm_vit().loaded),
    "clip": lambda: clip_vit(act_layer=QuickGELU),
    "clip-layer-scale": lambda: clip_vit(ls_init_value=0.5),
    "clip-sequence-first": lambda: clip_vit(batch_first=False),
}

# 17 tokens: 16 patches and the class token, in a batch of 3.
WRONG = {
    "axis": (
        lambda: ClaimsSequenceFirst(timm_vit().loaded),
        "norm2 of block 0 has tokens of shape [3, 17, 16], expected [17, 3, 16].",
    ),
    "axis-of-clip": (
        lambda: ClaimsBatchFirst(clip_vit(batch_first=False).loaded),
        "norm2 of block 0 has tokens of shape [17, 3, 16], expected [3, 17, 16].",
    ),
    "registers-as-patches": (
        with_registers_as_patches,
        "norm2 of block 0 has tokens of shape [3, 21, 16], expected [3, 17, 16].",
    ),
    "norm1-for-norm2": (
        lambda: TapsFirstNorm(timm_vit().loaded),
        "norm2, recomputed from the attention, differs by ",
    ),
    "scaled-attention": (
        lambda: TapsScaledAttention(timm_vit(init_values=0.5).loaded),
        "norm2, recomputed from the attention, differs by ",
    ),
    "before-the-activation": (
        lambda: TapsBeforeActivation(timm_vit().loaded),
        "the block's output, recomputed from the MLP's hidden activation, differs by ",
    ),
    "input-of-norm1": (
        lambda: TapsInputOfFirstNorm(timm_vit().loaded),
        "norm1, recomputed from what enters the block, differs by ",
    ),
    "tap-that-is-not-run": (
        lambda: TapsCopies(timm_vit().loaded),
        "norm2 of block 0 runs 0 times in a forward pass, expected once.",
    ),
    "final-norm-of-another-place": (
        lambda: TapsAnotherFinalNorm(timm_vit().loaded),
        "the last layer's tokens, recomputed from the last block, differs by ",
    ),
    "final-norm-of-another-input": (
        lambda: NormsTwice(timm_vit().loaded),
        "the final norm runs 2 times in a forward pass, expected once.",
    ),
    "output-through-another-norm": (
        lambda: timm_vit(model_class=OutputThroughAnotherNorm),
        "the model's output, recomputed from the last layer's tokens, differs by ",
    ),
    "another-embedding": (
        lambda: OtherEmbedding(timm_vit().loaded),
        "the embedding has shape [3, 17, 16], expected [3, 16].",
    ),
    "norms-swapped-in-blocks-of-unknown-form": (
        lambda: SwapsNorms(timm_vit().loaded),
        "the taps of the last block run in the order ['norm2', 'attn', 'norm1', 'mlp'], expected "
        "['norm1', 'attn', 'norm2', 'mlp'].",
    ),
    "no-effect-in-blocks-of-unknown-form": (
        lambda: OfUnknownForm(timm_vit(block_fn=Watching).loaded),
        "norm2 of the last block has no effect on what the block gives.",
    ),
    "no-effect-on-an-output-of-unknown-form": (
        lambda: OfUnknownForm(timm_vit(model_class=DropsFinal).loaded),
        "the tokens of the last layer have no effect on the model's output.",
    ),
    "batch-dependence": (
        lambda: timm_vit(model_class=MixesTheBatch),
        "norm1 of the last block of an image without its batch differs by ",
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
