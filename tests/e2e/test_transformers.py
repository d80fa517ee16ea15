"""A local folder of Hugging Face transformers on the command line: found again, made again when it changes, recomputed, never shown as a path."""

import json
import shutil
from pathlib import Path

import pytest

from support.running import Outcome

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder as `save_pretrained` writes it."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-dino"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Dinov2Model(transformers.Dinov2Config(**TINY)).save_pretrained(folder)
    transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size=32).save_pretrained(folder)
    return folder


def answer(outcome: Outcome) -> dict:
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


def test_a_folder_is_found_again_and_made_again_when_it_changes(cli, saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "tiny-dino"))
    options = ("--dataset", "digits", "--limit", 10, "--json")
    first = answer(cli("extract", "--model", f"transformers:{folder}", *options))
    assert (first["cached"], first["samples"]) == (False, 20)
    assert Path(first["path"]).name.startswith("transformers-tiny-dino-")
    for name in (f"transformers:{folder}", "transformers:./tiny-dino"):  # the working directory is tmp_path
        assert answer(cli("extract", "--model", name, *options))["cached"], name
    # Under the repository's own name it is the same cache.
    named = ("--model", "transformers:owner/tiny-dino", "--weights", folder)
    assert answer(cli("extract", *named, *options))["key"] == first["key"]

    shown = [
        (Path(first["path"]) / name).read_text() for name in ("provenance.json", "request.json", "README.md")
    ]
    assert not any(str(tmp_path) in text for text in shown)
    recompute = ("verify", first["key"], "--recompute", 4, "--dataset", "digits")
    assert cli(*recompute, "--model", f"transformers:{folder}").status == 0
    assert cli(*recompute).status == 0  # ./tiny-dino, as the provenance says

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    second = answer(cli("extract", "--model", f"transformers:{folder}", *options))
    assert not second["cached"]
    assert second["key"] != first["key"]


def test_wrong_requests_write_nothing(cli, saved, tmp_path):
    for arguments, message in (
        (
            ("--model", "timm:vit", "--trust-remote-code"),
            "--trust-remote-code is for transformers:OWNER/NAME",
        ),
        (
            ("--model", f"transformers:{saved}", "--weights", saved, "--weights-key", "x"),
            "--weights-key chooses from a file",
        ),
        (("--model", "transformers:a/b/c"), "names no repository; write transformers:OWNER/NAME"),
        (
            ("--model", "transformers:./nowhere"),
            "there is no folder ./nowhere; give the folder of a model that transformers saved",
        ),
        (
            ("--model", f"transformers:{saved}", "--input-size", 33),
            "--input-size 33 is no multiple of the patch",
        ),
        (("--model", f"transformers:{saved}", "--tokens", "registers"), "has no registers"),
    ):
        outcome = cli("extract", *arguments, "--dataset", "digits", "--limit", 10)
        assert outcome.status in (1, 2)
        assert message in outcome.err.splitlines()[-1]
    assert not (tmp_path / "root").exists()
