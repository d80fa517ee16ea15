"""zarrita on a Node with Float16Array, installed on first use into ``.node/`` from the lock file in ``tests/zarrita``."""

import hashlib
import shutil
import subprocess
from pathlib import Path

REPO = Path(__file__).parents[2]
SOURCE = REPO / "tests" / "zarrita"
FILES = ("package.json", "package-lock.json", "read.mjs")
# What npm says where it cannot reach its registry.
NO_NETWORK = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ETIMEDOUT",
    "ENETUNREACH",
    "EHOSTUNREACH",
)


class UnavailableError(Exception):
    """There is no npm, no network, or no Node for this machine."""


def node_command() -> list[str]:
    """Return the command that runs ``read.mjs``, installing what it needs.

    Raises:
        UnavailableError: that is not possible here; the message says why.
    """
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in FILES)).hexdigest()
    folder = REPO / ".node" / digest[:12]
    if not (folder / "installed").exists():
        _install(folder)
    for node in (*folder.glob("node_modules/node-*/bin/node"), shutil.which("node")):
        if node is not None and _has_float16(str(node)):
            return [str(node), str(folder / "read.mjs")]
    raise UnavailableError("no Node with Float16Array (24 or later) for this machine")


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UnavailableError("npm is not installed")
    shutil.rmtree(folder.parent, ignore_errors=True)  # earlier versions
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(SOURCE / name, folder)
    # No scripts: what a package holds is enough, and nothing of it is to run here but zarrita.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=60000"]
    done = subprocess.run([npm, "ci", *options], cwd=folder, capture_output=True, text=True)
    if done.returncode and any(code in done.stderr for code in NO_NETWORK):
        raise UnavailableError("npm cannot reach its registry")
    assert done.returncode == 0, done.stderr
    (folder / "installed").touch()


def _has_float16(node: str) -> bool:
    done = subprocess.run([node, "-p", "typeof Float16Array"], capture_output=True, text=True)
    return done.stdout.strip() == "function"
