"""One pays for the pass, the others have it: extract finds what a teammate has pushed, and probe trains on it."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from featcache.store.checking.verify import verify

from .conftest import MODEL, featcache


@pytest.fixture
def team(tmp_path):
    """A shared folder that FEATCACHE_ROOT can name."""
    (tmp_path / "team").mkdir()
    return f"file://{tmp_path}/team"


@pytest.fixture
def extract(cli, weights, images):
    def run(*more):
        model = ("--model", MODEL, "--weights", weights, "--precision", "fp32")
        outcome = cli("extract", *model, "--dataset", f"imagefolder:{images}", *more)
        assert outcome.status == 0, outcome.err
        return outcome

    return run


def test_what_a_teammate_has_is_pulled(cli, extract, weights, images, team, tmp_path, monkeypatch):
    first = json.loads(extract("--json").out)
    name = "/".join(first["path"].split("/")[-2:])
    assert cli("push", first["path"], team).status == 0

    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'mine'}:{team}")
    found = extract("--layers", "2")
    assert f"a teammate has this cache: pulling {tmp_path}/team/{name}" in found.err
    assert "already cached" in found.out
    assert json.loads(cli("ls", "--json").out)[0]["state"] == "partial (2 of 7 layers)"
    # More of it is asked for: the copy is completed, and nothing is computed.
    more = extract()
    assert "is a partial copy; completing it from" in more.err
    assert json.loads(cli("ls", "--json").out)[0]["state"] == "complete"
    assert verify(tmp_path / "mine" / name).intact
    assert extract("--json").err == ""

    # Renamed weights and another batch size: known by its key, once the backbone is loaded.
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'third'}:{team}")
    (tmp_path / "team" / name / "request.json").unlink()
    by_key = extract("--batch-size", "8")
    assert "a teammate has this cache" in by_key.err
    assert verify(tmp_path / "third" / name).intact

    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'fourth'}:{team}")
    forced = extract("--force", "--limit", "10")
    assert "a teammate" not in forced.err
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'fifth'}:ssh://127.0.0.1:9/nowhere:{team}")
    passed_over = extract()
    assert "note: ssh://127.0.0.1:9/nowhere was not looked at" in passed_over.err
    assert "a teammate has this cache" in passed_over.err


@pytest.mark.parametrize("what", ["chunk", "manifest", "bits"])
def test_a_copy_that_cannot_be_had_is_computed(cli, extract, team, tmp_path, monkeypatch, what):
    """One line says which remote is left out and why; the images are here."""
    first = json.loads(extract("--json").out)
    name = "/".join(first["path"].split("/")[-2:])
    assert cli("push", first["path"], team).status == 0
    chunks = sorted((tmp_path / "team" / name).glob("features.zarr/train/norm2/c.*"))
    if what == "chunk":
        chunks[-1].unlink()
    elif what == "manifest":
        (tmp_path / "team" / name / "manifest.json").write_text("{}")
    else:
        chunks[-1].write_bytes(bytes(chunks[-1].stat().st_size))
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'mine'}:{team}")
    outcome = extract()
    notes = [line for line in outcome.err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert f"{tmp_path}/team is left out, its copy could not be pulled" in notes[0]
    assert verify(tmp_path / "mine" / name).intact


def test_a_partial_copy_that_cannot_be_completed_says_what_to_do(cli, extract, team, tmp_path, monkeypatch):
    first = json.loads(extract("--json").out)
    name = "/".join(first["path"].split("/")[-2:])
    assert cli("push", first["path"], team).status == 0
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'mine'}:{team}")
    extract("--layers", "2")
    (tmp_path / "team" / name / "manifest.json").write_text("{}")
    with pytest.raises(AssertionError, match=r"could not be completed .* remove the copy \(`featcache rm "):
        extract()


def test_a_partial_copy_whose_origin_is_gone(cli, extract, team, tmp_path, monkeypatch):
    first = json.loads(extract("--json").out)
    name = "/".join(first["path"].split("/")[-2:])
    assert cli("push", first["path"], team).status == 0
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "mine"))
    assert cli("pull", f"{team}/{name}", "--layers", "last").status == 0
    shutil.rmtree(tmp_path / "team" / name)
    refused = cli("extract", "--model", MODEL, "--weights", "x", "--dataset", "digits")
    assert refused.status == 2
    outcome = cli(
        *(
            "probe",
            "--head",
            "attentive",
            "--protocol",
            "quick",
            "--cache",
            name,
            "--out",
            tmp_path / "results",
        )
    )
    assert outcome.status == 1
    assert "holds only a part of the cache" in outcome.err


def test_commands_stay_quick(tmp_path):
    """Clients of remotes are imported when one is opened: `ls` and `info` answer before that would be done."""
    heavy = "obstore, huggingface_hub, requests, asyncssh, boto3, torch, zarr"
    code = (
        "import sys; sys.argv = ['featcache', 'ls']\n"
        "from featcache.cli import main\n"
        "main()\n"
        f"print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    started = time.perf_counter()
    process = featcache("pull", "--help")
    process.communicate()
    assert process.returncode == 0
    assert time.perf_counter() - started < 5  # a bound for a busy machine
