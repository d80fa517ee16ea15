"""Pretrained weights through the libraries' own hub loading, against a server of the test's own on the loopback."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from support.servers import QuietHandler, closed_port, http_server

from .conftest import MODEL, featcache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to the model is restricted."}


@dataclass
class Content:
    """What the server answers."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By ``owner/name/file``."""
    refused: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """Status and headers by ``owner/name``."""


class Hub(QuietHandler):
    """As much of the Hub's protocol as a download of one file takes."""

    content: Content

    def get(self) -> None:
        repository, _, file = self.path.lstrip("/").partition("/resolve/")
        _, _, file = file.partition("/")  # of the main branch, or of a commit
        status, headers = self.content.refused.get(repository, (404, {"X-Error-Code": "EntryNotFound"}))
        data = self.content.files.get(f"{repository}/{file}")
        if data is not None:
            status = 200
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        self.reply(status, data or b"", headers)


@pytest.fixture
def content(weights) -> Content:
    """The weights of the tests' model, and two gated and one private repository."""
    return Content(
        files={f"{MODEL.replace('timm:', 'timm/')}/model.safetensors": weights.read_bytes()},
        refused={
            "timm/vit_small_patch16_dinov3.lvd1689m": (401, GATED),
            "timm/vit_base_patch16_dinov3.lvd1689m": (403, GATED),
            "timm/vit_base_patch32_clip_224.openai": (401, {}),
        },
    )


@pytest.fixture
def hub(content) -> Iterator[str]:
    handler = type("Handler", (Hub,), {"content": content})
    with http_server(handler) as port:
        yield f"http://127.0.0.1:{port}"


def environment(endpoint: str, tmp_path: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return own | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


# Loads some models in one process, since importing the libraries takes seconds, and prints what came of each.
SCRIPT = f"""
import json, logging, sys, time
import open_clip
from featcache.extraction.backbones import load_backbone
from featcache.extraction.models.names import resolve_model
from featcache.store.errors import FeatcacheError

logging.disable()
open_clip.factory._MODEL_CONFIGS["tiny"] = {CLIP!r}
open_clip.pretrained._PRETRAINED["tiny"] = dict(any=open_clip.pretrained._pcfg(hf_hub="test/tiny-clip/"))
for name in sys.argv[1:]:
    started = time.monotonic()
    try:
        backbone = load_backbone(resolve_model(name))
        outcome = dict(source=backbone.loaded.weights_source, digest=backbone.spec.weights_digest)
    except FeatcacheError as error:
        outcome = dict(error=str(error))
    print(json.dumps(dict(outcome, seconds=time.monotonic() - started)))
"""


def load(names: list[str], endpoint: str, tmp_path: Path, **more: str) -> list[dict]:
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names],
        env=environment(endpoint, tmp_path) | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_weights_from_the_hub_give_the_cache_of_the_same_weights_from_a_file(hub, weights, tmp_path, cli):
    arguments = ("extract", "--model", MODEL, "--dataset", "digits", "--limit", 10, "--precision", "fp32")
    process = featcache(*arguments, "--json", env=environment(hub, tmp_path))
    out, err = process.communicate()
    assert process.returncode == 0, err
    first = json.loads(out)
    assert not first["cached"]
    second = json.loads(cli(*arguments, "--weights", weights, "--json").out)
    assert second == {**first, "cached": True, "samples": 0, "seconds": 0.0, "images_per_second": None}
    provenance = json.loads((Path(first["path"]) / "provenance.json").read_text())
    assert provenance["weights_source"] == {
        "origin": "hub",
        "model": "test_vit.r160_in1k",
        "repository": "timm/test_vit.r160_in1k",
        "revision": COMMIT,
        "file": "model.safetensors",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


def test_what_the_hub_gives_and_refuses_and_what_is_left_without_it(hub, content, weights, tmp_path):
    clip = tiny_clip()
    content.files["test/tiny-clip/open_clip_model.safetensors"] = clip
    names = [
        MODEL,
        "open_clip:tiny/any",
        "dinov3-vit-s-16",
        "dinov3-vit-b-16",
        "clip-vit-b-32",
        "dinov2-vit-s-14",
    ]
    timm_vit, tower, *errors = load(names, hub, tmp_path)
    assert timm_vit["source"]["revision"] == tower["source"]["revision"] == COMMIT
    assert tower["source"] == {
        "origin": "hub",
        "model": "tiny/any",
        "repository": "test/tiny-clip",
        "revision": COMMIT,
        "file": "open_clip_model.safetensors",
        "sha256": hashlib.sha256(clip).hexdigest(),
    }
    remedy = "or give local weights with --weights FILE"
    gated = [
        f"pretrained weights of timm:{name} could not be loaded (timm/{name} is gated, status {status}); accept its "
        f"license at {hub}/timm/{name} and log in with `hf auth login`, {remedy}"
        for name, status in (
            ("vit_small_patch16_dinov3.lvd1689m", 401),
            ("vit_base_patch16_dinov3.lvd1689m", 403),
        )
    ]
    private = (
        "pretrained weights of open_clip:ViT-B-32-quickgelu/openai could not be loaded (no access to "
        f"timm/vit_base_patch32_clip_224.openai, status 401); log in with `hf auth login` as a user who may read it, {remedy}"
    )
    assert [error["error"] for error in errors[:3]] == [*gated, private]
    assert errors[3]["error"] == (
        "pretrained weights of timm:vit_small_patch14_dinov2.lvd142m could not be loaded "
        f"({hub} answered with status 404); see whether {hub}/timm/vit_small_patch14_dinov2.lvd142m is there, "
        f"try again later, {remedy}"
    )

    # Nobody answers any more: what was loaded is there, the rest is said to be missing without a minute of retries.
    gone = closed_port()
    cached, cached_tower, missing, missing_tower = load(
        [MODEL, "open_clip:tiny/any", "dinov2-vit-s-14", "clip-vit-b-16"], gone, tmp_path
    )
    for online, offline in ((timm_vit, cached), (tower, cached_tower)):
        assert (offline["source"], offline["digest"]) == (online["source"], online["digest"])
    for outcome, model, repository in (
        (missing, "timm:vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m"),
        (missing_tower, "open_clip:ViT-B-16-quickgelu/openai", "timm/vit_base_patch16_clip_224.openai"),
    ):
        assert outcome["error"] == (
            f"pretrained weights of {model} could not be loaded (no connection to {gone}, and {repository} is not in "
            "the local cache); check the connection to the Hugging Face Hub (HF_HUB_OFFLINE, HF_ENDPOINT, proxy), "
            f"{remedy}"
        )
        assert outcome["seconds"] < 10


def test_a_published_position_embedding_of_another_size_is_refused(hub, content, weights, tmp_path):
    state = load_file(weights)
    other = state | {"pos_embed": state["pos_embed"][:, :26].contiguous()}
    content.files[f"{MODEL.replace('timm:', 'timm/')}/model.safetensors"] = save(other)
    (outcome,) = load([MODEL], hub, tmp_path)
    assert outcome["error"] == (
        f"{MODEL} is not supported: its published position embedding has 26 tokens and its model 101, and timm's "
        "resizing in float32 depends on the processor"
    )


def test_a_repository_of_transformers(hub, content, tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")
    tiny = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    folder = tmp_path / "saved"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Dinov2Model(transformers.Dinov2Config(**tiny)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    # In two files, as large repositories have them.
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    parts = {
        file: save({name: state[name] for name in some}, {"format": "pt"}) for file, some in halves.items()
    }
    index = {"metadata": {}, "weight_map": {name: file for file, some in halves.items() for name in some}}
    configuration = {
        file: (folder / file).read_bytes() for file in ("config.json", "preprocessor_config.json")
    }
    files = configuration | parts | {"model.safetensors.index.json": json.dumps(index).encode()}
    content.files |= {f"test/dino/{file}": data for file, data in files.items()}
    content.files |= {f"test/empty/{file}": data for file, data in configuration.items()}
    content.refused["test/gated"] = (403, GATED)
    found, pinned, gated, missing, empty = load(
        [f"transformers:test/{name}" for name in ("dino", f"dino@{COMMIT}", "gated", "nothing", "empty")],
        hub,
        tmp_path,
    )
    assert found["source"] == {
        "origin": "hub",
        "model": "test/dino",
        "repository": "test/dino",
        "revision": COMMIT,
        "files": {file: hashlib.sha256(data).hexdigest() for file, data in parts.items()},
        "sha256": found["source"]["sha256"],
    }
    assert pinned["digest"] == found["digest"]
    assert gated["error"] == (
        "pretrained weights of transformers:test/gated could not be loaded (test/gated is gated, status 403); accept its license at "
        f"{hub}/test/gated and log in with `hf auth login`, or give local weights with --weights FILE"
    )
    assert missing["error"].startswith(
        "pretrained weights of transformers:test/nothing could not be loaded ("
    )
    assert empty["error"] == (
        "transformers:test/empty has no weights that can be read (model.safetensors or pytorch_model.bin, or their index)"
    )
    local, offline, absent = load(
        [f"transformers:{folder}", "transformers:test/dino", "transformers:test/other"],
        closed_port(),
        tmp_path,
    )
    assert (offline["source"], offline["digest"]) == (found["source"], found["digest"])
    assert (local["digest"], local["source"]["origin"]) == (found["digest"], "file")
    assert "and test/other is not in the local cache" in absent["error"]
    assert absent["seconds"] < 10


def tiny_clip() -> bytes:
    """Random weights of CLIP, in safetensors."""
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**CLIP)
    return save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
