"""Zero-shot classification from a cache, held against open_clip's own, with a small model of random weights."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

import featcache
from featcache.probing.requests.templates import TEMPLATES, as_templates
from featcache.probing.zero_shot import FOLDER
from featcache.store.errors import RequestError, UnknownNameError

from .conftest import make_images
from .test_errors import check

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
MODELS = {
    "class token": {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT},
    "average": {"embed_dim": 12, "vision_cfg": VISION | {"pool_type": "avg"}, "text_cfg": TEXT},
    # The norm after pooling gives an array of embeddings; logits have a bias, as SigLIP's.
    "embedding": {
        "embed_dim": 12,
        "vision_cfg": VISION | {"pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT,
        "init_logit_bias": -3.0,
    },
}
NAME = "open_clip:tiny/any"


@pytest.fixture(params=MODELS)
def model(request, monkeypatch, tmp_path):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", MODELS[request.param])
    torch.manual_seed(0)
    made = open_clip.create_model("tiny", pretrained_text=False).eval()
    with torch.no_grad():
        # Random towers give all texts nearly one embedding; a sharper projection tells them apart.
        made.text_projection.mul_(30)
    save_file(
        {name: value.contiguous() for name, value in made.state_dict().items()},
        tmp_path / "whole.safetensors",
    )
    return made


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_images(tmp_path / "photos", {"blue_bird": 6, "green": 6, "red": 6})


def extracted(photos: Path, tmp_path: Path, **changes):
    return featcache.extract(
        NAME,
        f"imagefolder:{photos}",
        weights=tmp_path / "whole.safetensors",
        precision="fp32",
        dtype="float32",
        progress=False,
        **changes,
    )


def open_clips_own(model, photos: Path, cache, templates) -> np.ndarray:
    """Predictions of the test images by open_clip's own functions, from the images."""
    tokenizer = open_clip.get_tokenizer("tiny")
    transform = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    names = [name.replace("_", " ") for name in cache.inventory.class_names]
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, names, list(templates))
    images = [transform(Image.open(photos / sample).convert("RGB")) for sample in cache["test"].sample_ids()]
    with torch.no_grad():
        embedded = model.encode_image(torch.stack(images), normalize=True)
        logits = model.logit_scale.exp() * embedded @ weights
        bias = getattr(model, "logit_bias", None)
        return (logits if bias is None else logits + bias).softmax(1).numpy()


def test_it_is_open_clips_own(model, photos, tmp_path):
    templates = "photo" if model.visual.pool_type == "tok" else "clip7"
    cache = extracted(photos, tmp_path)
    asked = {"text_weights": tmp_path / "whole.safetensors", "templates": templates, "protocol": "quick"}
    row = featcache.probe(cache, "zero-shot", baselines="none", out="results", progress=False, **asked)[-1]
    assert (row.head, row.solver, row.train_samples, row.parameters) == ("zero-shot", "text", 0, 0)
    expected = open_clips_own(model, photos, cache, TEMPLATES[templates])
    lines = (Path("results") / row.folder / "predictions.csv").read_text().splitlines()[1:]
    assert [int(line.split(",")[2]) for line in lines] == expected.argmax(1).tolist()
    np.testing.assert_allclose([float(line.split(",")[3]) for line in lines], expected.max(1), atol=2e-4)
    head = featcache.load_head(Path("results") / row.folder)
    assert head.config.head == "zero-shot"
    assert np.ptp(expected.max(1)) > 1e-3, "images differ, so the comparison tells something"


@pytest.fixture
def one(monkeypatch, photos, tmp_path):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", MODELS["class token"])
    torch.manual_seed(0)
    made = open_clip.create_model("tiny", pretrained_text=False).eval()
    state = {name: value.contiguous() for name, value in made.state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    save_file(
        {name: value for name, value in state.items() if name.startswith("visual.")},
        tmp_path / "image.safetensors",
    )
    other = {name: value + 1 if name == "visual.proj" else value for name, value in state.items()}
    save_file(other, tmp_path / "other.safetensors")
    return extracted(photos, tmp_path)


def test_the_text_tower_runs_once(cli, one, tmp_path):
    weights = ("--weights", tmp_path / "whole.safetensors")
    zero = ("probe", "--head", "zero-shot", "--protocol", "quick", "--json")
    table = cli(*zero[:-1], *weights)
    assert "zero-shot prompts: a photo of a blue bird.; a photo of a green." in table.err
    first = cli(*zero, *weights)
    assert first.status == 0, first.err
    heads = [row["head"] for row in json.loads(first.out)]
    assert heads == ["linear", "logreg", "best-layer", "zero-shot"]
    (kept,) = (Path("featcache-results") / FOLDER).iterdir()
    # Other seeds and protocols take the kept embeddings: no weights are needed any more.
    (tmp_path / "whole.safetensors").rename(tmp_path / "gone.safetensors")
    again = cli(*zero, "--seeds", "0,1")
    assert again.status == 0, again.err
    assert [row["score"] for row in json.loads(again.out) if row["head"] == "zero-shot"] == 2 * [
        json.loads(first.out)[-1]["score"]
    ]
    kept.write_bytes(b"no")
    damaged = cli(*zero, "--seeds", "2")
    assert damaged.status == 1
    assert "is damaged" in damaged.err
    noted = cli("probe", "--head", "ncm", "--protocol", "quick", "--baselines", "none")
    assert "--head zero-shot adds its classification by class names" in noted.err


def test_templates_of_ones_own(cli, one, tmp_path):
    (tmp_path / "mine.txt").write_text("a drawing of {}\n\n{} on a wall\n")
    weights = ("--weights", tmp_path / "whole.safetensors", "--baselines", "none")
    zero = ("probe", "--head", "zero-shot", "--protocol", "quick", *weights)
    done = cli(*zero, "--templates", tmp_path / "mine.txt")
    assert done.status == 0, done.err
    assert "a drawing of blue bird; " in done.err
    assert "2 templates" in done.err
    (tmp_path / "bad.txt").write_text("a photo\n")
    (tmp_path / "empty.txt").write_text("\n")
    for name, part in (
        ("bad.txt", "template 1: 'a photo' has no {}"),
        ("empty.txt", "must have from 1 to 1,000 templates, got 0"),
        ("fotos", "unknown templates 'fotos'; valid: photo, clip7"),
    ):
        given = tmp_path / name if name.endswith("txt") else name
        check(cli(*zero, "--templates", given), 2, part)
    with pytest.raises(RequestError, match="template 2"):
        as_templates(["{} here", "there"])
    with pytest.raises(UnknownNameError):
        as_templates("clip8")


def test_what_cannot_be(cli, one, made, tmp_path):
    zero = (
        "probe",
        "--head",
        "zero-shot",
        "--protocol",
        "quick",
        "--baselines",
        "none",
        "--cache",
        one.directory,
    )
    check(
        cli(*zero, "--weights", tmp_path / "image.safetensors"),
        1,
        "holds the image tower of open_clip:tiny/any alone",
    )
    check(
        cli(*zero, "--weights", tmp_path / "other.safetensors"),
        2,
        "the image tower is not the one that",
        "--weights",
    )
    every = ("probe", "--head", "zero-shot", "--protocol", "quick", "--cache")
    check(cli(*every, made), 2, "timm:tiny has no text tower; zero-shot is for caches of open_clip's models")
    check(
        cli(*every, one.directory, "--weights", tmp_path / "other.safetensors"),
        2,
        "the image tower is not the one that",
    )
    assert not Path("featcache-results/results.jsonl").exists(), "refused before anything is trained"
    check(
        cli("probe", "--head", "ncm", "--weights", tmp_path / "image.safetensors"),
        2,
        "--weights is for the head zero-shot",
    )
    check(cli(*zero, "--targets", "regression"), 2, "head 'zero-shot' is for single-label targets")
    with pytest.raises(RequestError, match="is fitted to a cache, not to arrays"):
        featcache.HeadProbe("zero-shot").fit(np.zeros((6, 1, 1, 4), np.float32), [0, 1] * 3)
