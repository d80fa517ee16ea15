"""Checks of the machine that the doctor makes: what limits decoding, and what does not."""

import resource

import pytest

from featcache.doctor import checks
from featcache.doctor.checks import NOTE, OK, Finding


@pytest.mark.parametrize(
    ("limits", "finding"),
    [
        ((256, 4096), Finding("open files", NOTE, "at most 256, of which a run may need 1,024", "raise the limit (ulimit -n 1024)")),
        ((256, 512), Finding("open files", NOTE, "at most 256, of which a run may need 1,024", "ask the administrator for a higher limit")),
        ((65536, 65536), Finding("open files", OK, "at most 65,536")),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), Finding("open files", OK, "no limit")),
    ],
)  # fmt: skip
def test_limit_of_open_files(monkeypatch, limits, finding):
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    assert list(checks._open_files()) == [finding]


def test_little_shared_memory_is_no_trouble(monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 64 * 10**6}))
    findings = list(checks._decoding())
    assert {finding.status for finding in findings} == {OK}
    assert any(
        "0.06 GB of shared memory free" in finding.detail and "need none" in finding.detail
        for finding in findings
    )


@pytest.mark.parametrize(
    ("decoder", "how"), [(None, "by Pillow"), (len, "by torchvision, pixels equal to Pillow's")]
)
def test_decoder_of_jpeg_files(monkeypatch, decoder, how):
    monkeypatch.setattr("featcache.extraction.decoding.jpeg.jpeg_decoder", lambda: decoder)
    assert next(iter(checks._decoding())).detail == f"JPEG files are decoded {how}"


def test_a_missing_extra_is_no_trouble(monkeypatch):
    def missing(name):
        raise checks.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.importlib.metadata, "version", missing)
    (finding,) = checks._extras()
    assert finding == Finding(
        "extra",
        OK,
        "transformers is not installed; it is for models of Hugging Face, --model transformers:REPO "
        "(pip install 'featcache[transformers]')",
    )
