"""Views of images: each equals an obvious way to make it, on the image and in the cache."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from featcache.extraction.decoding.preprocessing import in_two_parts, with_resize
from featcache.extraction.decoding.views import ViewInput, check_views, prepare_views, random_box, view_notes
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.forward_pass.view_passes import view_passes
from featcache.extraction.planning.inventory import plan_inventory
from featcache.extraction.requests.feature_selection import FeatureSelection
from featcache.extraction.sources.base import Sample
from featcache.store.errors import BackboneError, RequestError, UnknownNameError
from featcache.store.targets import Targets
from featcache.store.views import as_views, choose_views, named_view

from .tiny import noise, timm_vit

DIGEST = bytes(range(16))
TRANSFORM = create_transform(32, is_training=False, crop_pct=0.8, interpolation="bicubic")


def photo(width=61, height=47):
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8))


def prepared(name, image, resize="pillow", transform=TRANSFORM):
    view = named_view(name) if name else None
    given = ViewInput(name, view, with_resize(transform, resize), (32, 32))
    return next(iter(prepare_views([given], image, np.array(image), DIGEST))).contiguous()


@pytest.mark.parametrize("resize", ["pillow", "uint8-antialias"])
def test_a_flip_is_the_preprocessed_image_mirrored(resize):
    image = photo()
    plain = prepared("", image, resize).numpy()
    assert np.array_equal(prepared("flip", image, resize).numpy(), plain[:, :, ::-1])


def test_a_flip_of_the_file_gives_the_flip_view_where_margins_are_even():
    image = photo(40, 40)  # resized to 40, of which 4 pixels are cropped on every side
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert torch.equal(prepared("flip", image), prepared("", mirrored))


@pytest.mark.parametrize("resize", ["pillow", "uint8-antialias"])
@pytest.mark.parametrize("size", [(61, 47), (47, 61)])
def test_corner_crops_are_those_of_torchvision(resize, size):
    image = photo(*size)
    parts = in_two_parts(TRANSFORM).resized_by(resize)
    resized = parts.finish(parts.apply(parts.begin(image, np.array(image)), parts.steps[:1]))
    corners = transforms.FiveCrop(32)(resized)
    for number, wanted in enumerate(corners[:4], 1):
        assert torch.equal(prepared(f"crop{number}", image, resize), wanted), number


def test_views_that_are_prepared_together_equal_those_prepared_alone():
    image, names = photo(), ["", "crop1", "crop4", "flip", "random1seed5", "random2seed5"]
    made = with_resize(TRANSFORM, "pillow")
    inputs = [ViewInput(name, named_view(name) if name else None, made, (32, 32)) for name in names]
    together = list(prepare_views(inputs, image, np.array(image), DIGEST))
    for name, tensor in zip(names, together, strict=True):
        assert torch.equal(tensor.contiguous(), prepared(name, image)), name


@pytest.mark.parametrize("resize", ["pillow", "uint8-antialias"])
def test_a_random_crop_is_the_box_that_is_drawn(resize):
    image = photo()
    view = named_view("random3seed7")
    box, mirrored = random_box(view, *image.size, DIGEST)
    cut = image.crop(box)
    whole = transforms.Resize((32, 32), transforms.InterpolationMode.BICUBIC)
    wanted = torch.from_numpy(np.array(whole(cut))).permute(2, 0, 1)
    wanted = wanted.flip(-1) if mirrored else wanted
    got = prepared("random3seed7", image, resize)
    # The two versions of resizing differ by at most 2 of 255.
    difference = (got.int() - wanted.int()).abs().max().item()
    assert difference == 0 if resize == "pillow" else difference <= 2


def test_random_boxes_lie_within_the_image_and_cover_the_shares_that_they_state():
    shares, mirrored, left_edge = [], 0, set()
    for seed in range(400):
        digest = hashlib.sha256(str(seed).encode()).digest()[:16]
        (left, top, right, bottom), flip = random_box(named_view(f"random1seed{seed}"), 640, 480, digest)
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        shares.append((right - left) * (bottom - top) / (640 * 480))
        mirrored += flip
        left_edge.add(left)
    assert min(shares) > 0.35
    assert 0.6 < np.mean(shares) < 0.8
    assert 150 < mirrored < 250
    assert len(left_edge) > 50
    assert random_box(named_view("random1seed0"), 1, 5000, DIGEST)[0][2] == 1
    # Another seed, number or image is another crop; the same is the same.
    boxes = [
        random_box(named_view(name), 640, 480, digest)
        for name in ("random1seed0", "random2seed0", "random1seed1")
        for digest in (DIGEST, DIGEST[::-1])
    ]
    assert len(set(boxes)) == 6
    assert random_box(named_view("random1seed0"), 640, 480, DIGEST) == boxes[0]


def test_names_of_views():
    names = [view.name for view in as_views("flip, crops5,scales:224+336,random:2:seed4,crop1")]
    assert names == [
        *("crop1", "crop2", "crop3", "crop4", "flip"),
        *("random1seed4", "random2seed4", "scale224", "scale336"),
    ]
    assert as_views(as_views("flip")) == as_views("flip") == as_views(["flip"])
    assert as_views("") == ()
    for bad in ("flop", "crop", "crop01", "random", "random1", "flip:2", "crops5:3", "plainer"):
        with pytest.raises(UnknownNameError, match="unknown view"):
            as_views(bad)
    for bad, words in (
        ("crop5", "from 1 to 4"),
        ("crop0", "from 1 to 4"),
        ("scales:-3", "sides in pixels"),
        ("scales:9000", "8192 px"),
        ("random:0", "1 to 64"),
        ("random:x", "random:4:seed0"),
        ("random:2:7", "random:4:seed0"),
        ("random1seed99999999999", None),
    ):
        with pytest.raises(RequestError, match=words):
            as_views(bad)
    held = ("crop1", "crop2", "crop3", "crop4", "flip", "scale336")
    assert choose_views((), held) == ("plain",)
    assert choose_views(("flip", "plain"), held) == ("plain", "flip")
    assert choose_views(("all",), held) == ("plain", *held)
    assert choose_views(("crops5",), held) == ("plain", "crop1", "crop2", "crop3", "crop4")
    assert choose_views(("scales:224+336",), held, (224, 224)) == ("plain", "scale336")
    with pytest.raises(UnknownNameError, match="random1seed0"):
        choose_views(("random:1",), held)


def test_views_that_a_preprocessing_has_no_form_of_are_refused():
    backbone = timm_vit()
    backbone.transform = lambda image: torch.zeros(3, 32, 32)
    check_views(as_views("flip"), backbone)
    for name in ("crop1", "random:1"):
        with pytest.raises(RequestError, match=r"--views .* not a resize and a center crop"):
            check_views(as_views(name), backbone)
    squash = create_transform(32, is_training=False, crop_pct=1.0, crop_mode="squash")
    backbone.transform = squash
    with pytest.raises(RequestError, match="resizes to exactly 32 x 32 px"):
        check_views(as_views("crop1"), backbone)
    with pytest.raises(RequestError, match="runs at its own input size of 32x32 px alone"):
        plan_inventory(backbone, Rows(), FeatureSelection(views="scales:64"), "float16")
    backbone.transform = create_transform(32, is_training=False, crop_pct=1.0)
    notes = list(view_notes(as_views("crop1,flip,scales:32"), backbone))
    assert ["scale32 is the plain one" in notes[0], "views crop1 are equal" in notes[1]] == [True, True]


class Rows:
    """As much of a dataset as a plan needs."""

    name, notes, identity = "made", (), {"kind": "made"}
    targets = Targets("single-label", ("a", "b"))

    @property
    def splits(self):
        return {"train": [Sample("a", 0), Sample("b", 1)]}


def inventory_of(backbone, views, tokens="cls,ap"):
    selection = FeatureSelection(views=views, tokens=tokens)
    return plan_inventory(backbone, Rows(), selection, "float32")


def test_passes_of_views_equal_those_of_images_alone():
    backbone = timm_vit()
    backbone.transform = TRANSFORM
    inventory = inventory_of(backbone, "flip,crop2", "cls,ap,max,patches")
    made = []

    def make(sized, wanted):
        made.append(wanted)
        return FeatureExtractor(sized, torch.device("cpu"), "fp32", wanted, "float32")

    passes = view_passes(backbone, inventory, make)["train"]
    assert len(made) == 1, "views with the same arrays share an extractor"
    images = {name: noise(2, seed) for seed, name in enumerate(("", "flip", "crop2"))}
    together = passes.start(images)()
    names = {array.name for array in inventory.splits["train"].arrays.values() if array.layers}
    assert {*together} == names
    assert {"flip-norm2_max", "crop2-final_patches", "final"} <= names
    alone = make(backbone, made[0])
    for view, batch in images.items():
        for name, values in alone.start(batch)().items():
            np.testing.assert_array_equal(together[f"{view}-{name}" if view else name], values)


def test_a_value_that_is_not_finite_names_the_view():
    backbone = timm_vit()
    inventory = inventory_of(backbone, "flip")
    passes = view_passes(
        backbone,
        inventory,
        lambda sized, wanted: FeatureExtractor(sized, torch.device("cpu"), "fp32", wanted, "float32"),
    )["train"]
    images = {"": noise(2), "flip": noise(2)}
    images["flip"][1, 0, 3, 3] = float("nan")
    error = passes.explain(images, Rows().splits["train"])
    assert isinstance(error, BackboneError)
    assert str(error).startswith("view flip: sample 'b', norm2, layer 0")
