"""What featcache needs of a machine, checked by trying it: devices, folders, the hub, libraries."""

import importlib
import importlib.metadata
import mmap
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.store.files import JsonObject, write_atomic
from featcache.store.writing.claims import Claims

if TYPE_CHECKING:
    import torch

OK, NOTE, FAILED = "ok", "note", "failed"
"""A note is worth knowing, but nothing that is needed fails."""
HUB_TIMEOUT_S = 5.0
OPEN_FILES = 1024
"""Usual limit of a Linux system; a run with ViT-L and many workers stays below a quarter of it."""
ROOM_BYTES = 10**9

# Distributions that are imported under another name.
_MODULES = {"open_clip_torch": "open_clip", "pillow": "PIL", "scikit-learn": "sklearn"}
_EXTRAS = {"transformers": "models of Hugging Face, --model transformers:REPO"}
"""Optional libraries by their name, which is that of the extra too, and what they are for."""
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)\s*(?:>=\s*(?P<least>[0-9.]+))?")


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    status: str
    """``ok``, ``note`` or ``failed``."""
    detail: str
    remedy: str = ""
    """What to do about it."""

    def to_dict(self) -> JsonObject:
        """Return the finding as plain JSON values."""
        return asdict(self)


def examine(roots: Sequence[Path]) -> Iterator[Finding]:
    """Check everything, one after another; nothing stays behind.

    Args:
        roots: the roots; only the first has to take new caches.
    """
    yield from _libraries()
    yield from _guarded("extra", _extras)
    yield from _guarded("device", _devices)
    yield from _guarded("decoding", _decoding)
    yield from _guarded("open files", _open_files)
    for position, root in enumerate(roots):
        yield from _guarded("root", lambda root=root, first=position == 0: _root(root, first))  # type: ignore[misc]
    yield from _guarded("hub", _hub)


def _guarded(check: str, findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that breaks off is a finding too, and the others are still made."""
    try:
        yield from findings()
    except Exception as error:  # this is what a doctor is called for
        yield Finding(check, FAILED, _one_line(error), "see the libraries above, or report it with this line")


def _libraries() -> Iterator[Finding]:
    yield Finding("python", OK, f"{platform.python_version()} on {platform.platform()}")
    for requirement in importlib.metadata.requires("featcache") or []:
        match = _REQUIREMENT.match(requirement)
        if match is None or "extra ==" in requirement:
            continue
        name, least = match["name"], match["least"] or "0"
        remedy = f"pip install '{requirement}'"
        try:
            version = importlib.metadata.version(name)
            importlib.import_module(_MODULES.get(name, name))
        except Exception as error:  # a broken library raises anything
            yield Finding("library", FAILED, f"{name}: {_one_line(error)}", remedy)
            continue
        if _numbers(version) < _numbers(least):
            yield Finding("library", FAILED, f"{name} {version} is older than {least}", remedy)
        else:
            yield Finding("library", OK, f"{name} {version}")


def _extras() -> Iterator[Finding]:
    """Report which optional libraries are installed; a missing one is no trouble until a command needs it."""
    for name, purpose in _EXTRAS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            install = f"pip install 'featcache[{name}]'"
            yield Finding("extra", OK, f"{name} is not installed; it is for {purpose} ({install})")
        else:
            yield Finding("extra", OK, f"{name} {version}, for {purpose}")


def _numbers(version: str) -> list[int]:
    """``2.15.0+cpu`` as ``[2, 15, 0]``."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def _devices() -> Iterator[Finding]:
    import torch

    from featcache.devices.choice import choose_device
    from featcache.devices.precision import MIXED, autocast_dtype, fast_precision
    from featcache.store.machine import usable_cpus
    from featcache.store.requests import AUTO

    names = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in [*names, "cpu"]:
        device = torch.device(name)
        dtype = autocast_dtype(device) if fast_precision(device) == MIXED else torch.float32
        detail = f"{name}: {_describe(device, usable_cpus())}, {str(dtype).removeprefix('torch.')} by default"
        try:
            product = torch.ones(64, 64, device=device, dtype=dtype) @ torch.ones(
                64, 64, device=device, dtype=dtype
            )
            works = bool((product == 64).all())
        except RuntimeError as error:
            yield Finding("device", FAILED, f"{detail}: {_one_line(error)}", _without(name))
            continue
        yield Finding(
            "device", *(OK, detail) if works else (FAILED, f"{detail}: it multiplies wrongly", _without(name))
        )
    if not torch.cuda.is_available() and Path("/dev/nvidia0").exists():
        found = f"there is an NVIDIA GPU, but torch {torch.__version__} cannot use it"
        yield Finding(
            "device", NOTE, found, "install a torch built for CUDA, and a driver that is new enough for it"
        )
    yield Finding("device", OK, f"extract takes {choose_device(AUTO)}")


def _describe(device: "torch.device", cores: int) -> str:
    import torch

    from featcache.devices.memory import gpu_memory
    from featcache.devices.precision import bfloat16_units

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = gpu_memory(device)
        return f"{properties.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if device.type == "mps":
        return "Apple GPU"
    units = bfloat16_units()
    return f"{cores} cores, " + (f"with {units}" if units else "without units for bfloat16")


def _without(device: str) -> str:
    return "reinstall torch" if device == "cpu" else "repair the driver, or extract with --device cpu"


def _decoding() -> Iterator[Finding]:
    from featcache.extraction.decoding.jpeg import jpeg_decoder

    how = "by torchvision, pixels equal to Pillow's" if jpeg_decoder() is not None else "by Pillow"
    yield Finding("decoding", OK, f"JPEG files are decoded {how}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        detail = f"{free / 1e9:.2f} GB of shared memory free; decoding processes use sockets and need none"
        yield Finding("decoding", OK, detail)


def _open_files() -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        yield Finding("open files", OK, "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")
        return
    may = hard == resource.RLIM_INFINITY or hard >= OPEN_FILES
    remedy = (
        f"raise the limit (ulimit -n {OPEN_FILES})" if may else "ask the administrator for a higher limit"
    )
    yield Finding("open files", NOTE, f"at most {soft:,}, of which a run may need {OPEN_FILES:,}", remedy)


def _root(root: Path, first: bool) -> Iterator[Finding]:
    """Try in `root` what writing and reading a cache takes; where it does not exist, in the nearest folder that does."""
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not place.is_dir() or (place != root and not first):
        what = "does not exist" if place.is_dir() else f"cannot be made: {place} is not a folder"
        remedy = "make the folder, or take it out of FEATCACHE_ROOT"
        yield Finding("root", FAILED if first else NOTE, f"{root} {what}", remedy)
        return
    lead = f"{root}" if place == root else f"{root} (to be made in {place})"
    needed = FAILED if first else NOTE
    try:
        with tempfile.TemporaryDirectory(prefix=".featcache-doctor-", dir=place) as folder:
            failures = list(_failures(Path(folder)))
    except OSError as error:
        remedy = (
            "give yourself the right to write there, or name another folder with --root or FEATCACHE_ROOT"
        )
        yield Finding("root", needed, f"{lead}: not writable ({_one_line(error)})", remedy if first else "")
        return
    for failure in failures:
        remedy = "put the root on a local disk; caches can be copied from there"
        yield Finding("root", needed, f"{lead}: {failure}", remedy)
    if not failures:
        yield Finding("root", OK, f"{lead}: file locks, fsync and memory maps work")
    free = shutil.disk_usage(place).free
    status, remedy = (NOTE, "make room, or name another folder") if free < ROOM_BYTES else (OK, "")
    yield Finding("root", status, f"{lead}: {free / 1e9:.1f} GB free", remedy)


def _failures(folder: Path) -> Iterator[str]:
    trials = {"file locks": _try_to_lock, "fsync": _try_to_sync, "memory maps": _try_to_map}
    for what, trial in trials.items():
        try:
            trial(folder)
        except OSError as error:
            yield f"{what} fail: {_one_line(error)}"


def _try_to_lock(folder: Path) -> None:
    mine, another = Claims(folder), Claims(folder)
    try:
        if not mine.acquire("doctor") or another.acquire("doctor"):
            raise OSError("a lock that is held does not keep another process out")
    finally:
        another.close()
        mine.close()


def _try_to_sync(folder: Path) -> None:
    write_atomic(folder / "synced", b"featcache")


def _try_to_map(folder: Path) -> None:
    path = folder / "mapped"
    path.write_bytes(b"featcache" * 1000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if mapped[-9:] != b"featcache":
            raise OSError("a mapped file reads other bytes than were written")


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    here = "only weights that are cached already, or given with --weights, can be loaded"
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", NOTE, f"HF_HUB_OFFLINE is set: {here}", "unset it to download weights")
    else:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S).status_code
        except (
            Exception
        ):  # the client's HTTP library is another one in other versions; its text may tell a proxy's password
            remedy = "check the connection, HF_ENDPOINT and the proxy; nothing to do where weights are local"
            yield Finding("hub", NOTE, f"{constants.ENDPOINT} cannot be reached: {here}", remedy)
        else:
            yield Finding("hub", OK, f"{constants.ENDPOINT} answers (status {status})")
    present = get_token() is not None
    detail = "there is a token" if present else "there is no token; only gated and private models need one"
    yield Finding("hub", OK, detail)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
