"""Write, with the installed version of featcache, what later versions must still read: ``python -m compat.make FILE``.

Run once for a release, from the folder ``tests``; the archive FILE (``compat/v0.1.0.tar.xz``) is committed and never
written again. It holds ``root`` (caches, one of them unfinished), ``partial`` (a copy of the last layer), ``remote`` (a
pushed cache), ``results`` (saved heads and their scores) and ``expected.json`` (digests taken when it was written).
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from compat import inputs

FEATCACHE = str(Path(sys.executable).parent / "featcache")
EXTRACTED = ("imagefolder", inputs.REGRESSION, inputs.MULTI_LABEL)
"""The forms of which there is a cache; of the others, the identity is recorded."""
UNFINISHED = "npz"
HEADS = "linear,attentive,ridge,logreg,knn,lda"
FAST_PROTOCOL = (
    'base = "quick"\nlearning_rates = [1e-2]\nweight_decays = [1e-4]\nmin_steps = 30\nmin_epochs = 2\n'
)
PROBE = ("--precision", "fp32", "--device", "cpu")
SETTINGS = ("--precision", "fp32", "--batch-size", "16", "--workers", "0", "--device", "cpu")

# A committed block is all that the unfinished cache keeps: it is killed right after the first.
KILLED_AFTER_A_BLOCK = """
import os, signal
from featcache.store.writing.writer import CacheWriter
commit = CacheWriter.commit
def commit_and_die(self, block):
    commit(self, block)
    os.kill(os.getpid(), signal.SIGKILL)
CacheWriter.commit = commit_and_die
from featcache.cli import main
main()
"""


def target(form: str) -> tuple[str, ...]:
    """Return the options that say what kind of targets the dataset of a form has."""
    return ("--target", form) if form in (inputs.REGRESSION, inputs.MULTI_LABEL) else ()


def extract_arguments(form: str, dataset: str, weights: Path, root: Path) -> list[str]:
    """Return the command that makes the cache of a form."""
    names = ("--model", inputs.MODEL, "--weights", str(weights), "--dataset", dataset)
    return ["extract", *names, *target(form), *SETTINGS, "--root", str(root)]


def values_digest(cache_folder: Path) -> dict[str, str]:
    """Return, for each split of a cache, SHA-256 over features, labels and ids of its rows, in order."""
    import featcache

    cache, digests = featcache.open(cache_folder), {}
    for name in ("train", "test"):
        split = cache[name]
        digest = hashlib.sha256(split.load(split.layers, split.tokens).tobytes())
        digest.update(split.labels().tobytes())
        digest.update("\n".join(split.sample_ids()).encode())
        digests[name] = digest.hexdigest()
    return digests


def main(archive: Path) -> None:
    """Write everything and pack it."""
    directory = Path(tempfile.mkdtemp(prefix="compat-"))
    root, remote, results = (directory / name for name in ("root", "remote", "results"))
    expected: dict[str, object] = {"version": version("featcache")}
    with tempfile.TemporaryDirectory() as scratch:
        datasets = inputs.write_all(Path(scratch))
        weights = inputs.write_weights(Path(scratch, "weights.safetensors"))
        caches = {}
        for form in EXTRACTED:
            caches[form] = _json(*extract_arguments(form, datasets[form], weights, root))["path"]
        arguments = extract_arguments(UNFINISHED, datasets[UNFINISHED], weights, root)
        killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_A_BLOCK, *arguments], check=False)
        assert killed.returncode == -signal.SIGKILL
        expected["identities"] = {form: _identity(form, dataset) for form, dataset in datasets.items()}
        protocol = Path(scratch, "fast.toml")
        protocol.write_text(FAST_PROTOCOL)
        for form, path in caches.items():
            heads = HEADS if form == "imagefolder" else "linear,ridge"
            _run("probe", "--cache", path, "--head", heads, *PROBE, "--protocol", protocol, "--out", results)
    main_cache = Path(caches["imagefolder"])
    name = f"{main_cache.parent.name}/{main_cache.name}"
    remote.mkdir()
    _run("push", main_cache, remote)
    _run("pull", f"file://{remote.resolve()}/{name}", "--layers", "last", "--root", directory / "partial")
    expected["caches"] = {
        form: {"name": "/".join(Path(path).parts[-2:]), "values": values_digest(Path(path))}
        for form, path in caches.items()
    }
    (directory / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(directory, ".", filter=_anonymous)
    shutil.rmtree(directory)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _identity(form: str, dataset: str) -> dict[str, object]:
    from featcache.extraction.sources import resolve_source
    from featcache.extraction.sources.dataset import DatasetOptions

    options = DatasetOptions(target=form) if target(form) else DatasetOptions()
    return dict(resolve_source(dataset, options).identity)


def _run(*arguments: object) -> str:
    command = [FEATCACHE, *map(str, arguments)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return done.stdout


def _json(*arguments: object) -> dict[str, str]:
    answer: dict[str, str] = json.loads(_run(*arguments, "--json"))
    return answer


if __name__ == "__main__":
    main(Path(sys.argv[1]))
