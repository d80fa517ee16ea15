"""Bad input: one clear line with the next step, the right exit status, and nothing left behind."""

import errno
import json
import os
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from featcache.cli import _describe_os_error
from featcache.store.files import write_atomic
from featcache.terminal.console import print_table

from .conftest import MODEL, make_images


def check(outcome, status, *parts):
    assert outcome.status == status, outcome.err
    assert "Traceback" not in outcome.err
    last = outcome.err.strip().splitlines()[-1]
    for part in parts:
        assert part in last, last
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["--model", "vit-l-41", "--dataset", "digits"],
            ["unknown model 'vit-l-41'", "did you mean", "vit-l-14"],
        ),
        (
            ["--model", "qqqq", "--dataset", "digits"],
            ["valid: clip-vit-b-32", "timm:NAME, open_clip:ARCHITECTURE/TAG or transformers:OWNER/NAME"],
        ),
        (["--model", "open_clip:ViT-L-14", "--dataset", "digits"], ["lacks its pretrained tag"]),
        (
            ["--model", "timm:vit_smal_patch16_224", "--dataset", "digits"],
            ["unknown timm model", "vit_small_patch16_224"],
        ),
        (
            ["--model", "timm:test_vit.r160", "--dataset", "digits"],
            ["unknown pretrained tag", "did you mean r160_in1k?"],
        ),
        (
            ["--model", "open_clip:ViT-B-32-quickgel/openai", "--dataset", "digits"],
            ["unknown open_clip architecture", "ViT-B-32-quickgelu"],
        ),
        (
            ["--model", "open_clip:ViT-B-32/opnai", "--dataset", "digits"],
            ["unknown pretrained tag", "openai"],
        ),
        (["--model", MODEL, "--dataset", "digit"], ["unknown dataset 'digit'; did you mean digits"]),
        (["--model", MODEL, "--dataset", "imagefolder:"], ["imagefolder needs an argument"]),
        (["--model", MODEL, "--dataset", "imagefolder:nowhere"], ["nowhere does not exist"]),
        (
            ["--model", MODEL, "--dataset", "digits", "--weights", "none.pt"],
            ["weights file none.pt does not exist"],
        ),
        (
            ["--model", MODEL, "--dataset", "digits", "--dtype", "float61"],
            ["unknown dtype 'float61'; did you mean float16"],
        ),
        (
            ["--model", MODEL, "--dataset", "digits", "--precision", "fp23"],
            ["unknown precision 'fp23'; did you mean fp32"],
        ),
        (
            ["--model", MODEL, "--dataset", "digits", "--weights", "."],
            ["weights file . is not a file"],
        ),
        # Told before anything is loaded: there are no weights here, and there is no hub.
        (
            ["--model", "vit-l-14", "--dataset", "digits", "--layers", "3,24"],
            ["unknown layer '24'", "(blocks 0 to 23, or final)"],
        ),
        (
            ["--model", "vit-l-14", "--dataset", "digits", "--tokens", "registers"],
            ["open_clip:ViT-L-14-quickgelu/openai has no registers; leave them out of --tokens"],
        ),
        (
            ["--model", MODEL, "--dataset", "digits", "--batch-size", "1048577"],
            ["batch size must be at most 1048576, got 1048577"],
        ),
        (
            ["--model", MODEL, "--dataset", "digits", "--device", "meta"],
            ["device 'meta' cannot be used here"],
        ),
        (["--model", MODEL, "--dataset", "digits", "--limit", "0"], ["limit must be at least 1, got 0"]),
        (
            ["--model", MODEL, "--dataset", "digits", "--limit", "9"],
            ["limit 9 is smaller than the number of classes (10)"],
        ),
        (
            ["--model", MODEL, "--dataset", "digits", "--device", "gpu"],
            ["device 'gpu' cannot be used here (write auto, cpu, cuda, cuda:1 or mps); try --device cpu"],
        ),
    ],
)
def test_extract_requests(cli, tmp_path, arguments, parts):
    check(cli("extract", *arguments), 2, *parts)
    assert not list((tmp_path / "root").glob("*/*"))


def test_a_command_that_does_not_exist(cli):
    outcome = cli("verfy", "04d56e")
    assert outcome.status == 2
    assert outcome.err.strip() == "featcache: unknown command 'verfy'; did you mean verify?"


def test_missing_options_are_usage_errors(cli):
    outcome = cli("extract", "--model", MODEL)
    assert outcome.status == 2
    assert "Missing option '--dataset'" in outcome.err
    assert cli("probe").status == 2
    assert cli("extrct").status == 2


def test_weights_that_do_not_fit(cli, tmp_path, weights):
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    check(
        cli("extract", "--model", MODEL, "--dataset", "digits", "--weights", "junk.safetensors"),
        1,
        "weights file junk.safetensors cannot be read",
    )
    state = load_file(weights)
    for change, reason in (
        ({"norm.bias": None}, "it lacks norm.bias"),
        (
            {"blocks.6.norm1.bias": state["norm.bias"].clone()},
            "it has, and the model has not, blocks.6.norm1.bias",
        ),
        ({"norm.bias": state["norm.bias"][:5].clone()}, "size mismatch for norm.bias"),
    ):
        changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        save_file(changed, tmp_path / "other.safetensors")
        outcome = cli("extract", "--model", MODEL, "--dataset", "digits", "--weights", "other.safetensors")
        check(outcome, 1, f"weights file other.safetensors does not fit {MODEL} (", reason)


FOLDERS = {
    "no class folders": ({}, [], "has no class folders"),
    "a class without images": ({"a": 3, "b": 3}, ["empty"], "no images in class folder empty"),
    "train without test": ({"train/a": 3}, [], "has no test/ folder"),
    "a class that train lacks": (
        {"train/a": 3, "train/b": 3, "test/a": 2, "test/x": 2},
        [],
        "test has classes that train lacks: x",
    ),
    "names that differ": (
        {"train/cat": 3, "test/Cat": 3},
        [],
        "test has classes that train lacks: Cat (train has, and test lacks: cat)",
    ),
    "a class with one image": ({"a": 3, "b": 1}, [], "class 'b' has a single image"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_image_folders(cli, tmp_path, case):
    counts, empty, message = FOLDERS[case]
    data = tmp_path / "data"
    data.mkdir()
    make_images(data, counts)
    for name in empty:
        (data / name).mkdir()
    check(cli("extract", "--model", MODEL, "--dataset", "imagefolder:data"), 1, message)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named_and_the_run_goes_on_without_it(
    cli, tmp_path, weights, workers
):
    data = make_images(tmp_path / "data", {"a": 150, "b": 150})
    broken = data / "b" / "149.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    arguments = (
        "extract",
        "--model",
        MODEL,
        "--weights",
        weights,
        "--dataset",
        "imagefolder:data",
        "--workers",
        workers,
    )
    remedy = "leave it out with --on-error skip, which goes on after what is committed"
    check(cli(*arguments, "--batch-size", 48), 1, f"image {broken} does not decode (", remedy)
    state = json.loads(cli("ls", "--json").out)[0]["state"]
    assert state.startswith("incomplete")
    assert list((tmp_path / "root").rglob("*.partial")) == []
    # What was begun goes on with the batches that it was begun with, whatever is asked for now or fits.
    for asked in ((), ("--batch-size", 16)):
        estimate = json.loads(cli(*arguments, *asked, "--on-error", "skip", "--dry-run", "--json").out)
        assert (estimate["state"], estimate["batch_size"]) == ("unfinished", 48)
    done = cli(*arguments, "--batch-size", 16, "--on-error", "skip")
    assert done.status == 0, done.err
    assert ": 128 of 300 samples are committed" in done.err
    assert "the batch size stays 48, as it was when this cache was begun" in done.err
    assert "note: 1 sample has no features" in done.out
    (manifest,) = (tmp_path / "root").glob("*/*/manifest.json")
    assert json.loads(manifest.read_text())["batch_size"] == 48


@pytest.fixture
def cached(cli, weights, images):
    arguments = ("extract", "--model", MODEL, "--weights", weights, "--precision", "fp32")
    for more in (("--dataset", "digits", "--limit", 30), ("--dataset", f"imagefolder:{images}")):
        assert cli(*arguments, *more).status == 0


def test_probe_requests(cli, cached, tmp_path):
    cases = [
        (["--head", "atentive"], ["unknown head 'atentive'; did you mean attentive"]),
        (["--head", "linear", "--layers", "6"], ["unknown layer '6'", "(blocks 0 to 5, or final)"]),
        (["--head", "linear", "--layers", "lst"], ["unknown layer 'lst'", "last"]),
        (["--head", "linear", "--layers", "1,1"], ["layer 1 is named more than once"]),
        (["--head", "linear", "--tokens", "patch"], ["unknown token kind 'patch'"]),
        (["--head", "linear", "--protocol", "papr"], ["unknown protocol 'papr'; did you mean paper"]),
        (["--head", "linear", "--seeds", "a"], ["seeds must be whole numbers separated by commas, got 'a'"]),
        (["--head", "linear", "--seeds", "-1"], ["seeds must not be negative"]),
        (["--head", "linear", "--device", "gpu"], ["device 'gpu' cannot be used here"]),
    ]
    for arguments, parts in cases:
        check(cli("probe", *arguments), 2, *parts)
    assert not (tmp_path / "featcache-results" / "results.jsonl").exists()
    ambiguous = cli("probe", "--head", "linear", "--model", MODEL)
    assert ambiguous.status == 2
    assert "2 caches match; name one with --cache:" in ambiguous.err
    assert "digits/timm-test-vit" in ambiguous.err
    missing = cli("probe", "--head", "linear", "--cache", "ffff")
    assert missing.status == 2
    assert "no cache matches ffff" in missing.err


def test_no_cache_at_all(cli):
    check(
        cli("probe", "--head", "attentive"), 2, "there is no cache under", "make one with `featcache extract"
    )
    check(cli("info"), 2, "there is no cache under")


def test_a_damaged_cache(cli, cached, tmp_path):
    (manifest,) = (tmp_path / "root" / "digits").glob("*/manifest.json")
    manifest.write_text(manifest.read_text().replace("float16", "float32"))
    check(
        cli("probe", "--head", "linear", "--dataset", "digits"),
        1,
        "manifest.json",
        "field 'digest' does not match",
    )
    assert "damaged" in cli("ls").out


def test_a_damaged_cache_is_no_answer_and_the_remedy_works(cli, weights, images, tmp_path):
    arguments = ("extract", "--model", MODEL, "--weights", weights, "--precision", "fp32")
    arguments = (*arguments, "--dataset", f"imagefolder:{images}")
    assert cli(*arguments).status == 0
    (folder,) = (tmp_path / "root" / images.name).iterdir()
    (folder / "features.zarr" / "train" / "final" / "c.0.0.0.0").unlink()
    check(
        cli(*arguments), 1, f"c.0.0.0.0: missing; the cache is damaged: `featcache verify --repair {folder}`"
    )
    assert cli("verify", "--repair").status in (0, 1)
    assert cli(*arguments).status == 0
    assert cli("verify").status == 0
    (folder / "manifest.json").write_text("{}")
    check(cli(*arguments), 1, "manifest.json", "remove the cache (`featcache rm")
    assert cli("rm", folder, "--yes").status == 0
    assert cli(*arguments).status == 0


def test_a_root_that_cannot_be_written(cli, weights, tmp_path):
    (tmp_path / "root").write_text("a file where the folder should be")
    outcome = cli("extract", "--model", MODEL, "--weights", weights, "--dataset", "digits", "--limit", 10)
    check(outcome, 1, "Not a directory", "root")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            "Permission denied: x; name another place, or",
        ),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
            "refused; nothing answers there; is",
        ),
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "known; is the name of the host right",
        ),
    ],
)
def test_errors_of_the_system_come_with_advice(cli, monkeypatch, error, advice):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("featcache.api.listing.scan", fail)
    check(cli("ls"), 1, advice)


def test_a_folder_for_the_results_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomic(tmp_path / "nodir" / "x.csv", b"")
    assert _describe_os_error(caught.value) == (
        f"No such file or directory: {tmp_path}/nodir/x.csv; {tmp_path}/nodir does not exist; was it moved or unmounted?"
    )


def test_output_that_nobody_reads():
    """Neither done nor failed: what a shell makes of SIGPIPE, and nothing on stderr."""
    reads, writes = os.pipe()
    os.close(reads)
    for arguments in (("models",), ("models", "--json"), ("heads",)):
        command = [sys.executable, "-m", "featcache", *arguments]
        done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (141, b""), arguments
    os.close(writes)


def test_a_dumb_terminal_shows_whole_tables(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_table(("a", "b"), [["x" * 90, "y" * 90]])
    shown = capsys.readouterr().out
    assert "x" * 90 in shown
    assert "y" * 90 in shown
