"""The index of a tar file against Python's own `tarfile`, for every format, name and window; and files that are damaged."""

import gzip
import io
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.extraction.sources import tar_index
from featcache.extraction.sources.tar_index import BLOCK, index_tar
from featcache.store.errors import DatasetError
from support.datasets import shard_members, write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
NAMES = st.one_of(
    st.from_regex(r"[a-z0-9]{1,12}\.(webp|cls)", fullmatch=True),
    st.from_regex(r"(\./)?[a-z]{1,90}/[a-z]{1,90}\.cls", fullmatch=True),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=60).map(
        lambda t: t.strip("/") or "a"
    ),
)


def as_tarfile_says(path) -> list[tuple[str, int, int]]:
    with tarfile.open(path) as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


def as_indexed(path) -> list[tuple[str, int, int]]:
    index = index_tar(path)
    return list(zip(index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True))


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(st.tuples(NAMES, st.sampled_from([0, 1, 511, 512, 513, 3000])), max_size=12),
    form=st.sampled_from(FORMATS),
    window=st.sampled_from([BLOCK, 3 * BLOCK, 2**22]),
    folders=st.booleans(),
)
def test_what_tarfile_finds_is_found(tmp_path_factory, members, form, window, folders):
    path = tmp_path_factory.mktemp("tar") / "0.tar"
    with tarfile.open(path, "w", format=form) as tar:
        if folders:
            for kind, name in ((tarfile.DIRTYPE, "folder"), (tarfile.SYMTYPE, "link")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "folder/x"
                tar.addfile(info)
        for name, size in members:
            try:
                info = tarfile.TarInfo(name)
                info.size = size
                tar.addfile(info, io.BytesIO(b"\1" * size))
            except ValueError:  # a name that ustar has no room for
                continue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_index, "WINDOW_BYTES", window)
        assert as_indexed(path) == as_tarfile_says(path)


def test_gnu_tar_s_own_files_and_content_that_looks_like_a_tar(tmp_path):
    """A shard within a shard: every block of it has the magic, and its chain leads elsewhere."""
    inner = write_tar(tmp_path / "inner.tar", shard_members("train", range(4)))
    (tmp_path / ("long" * 40)).write_bytes(inner.read_bytes())
    outer = write_tar(tmp_path / "outer.tar", [("a.bin", inner.read_bytes()), ("b.cls", b"1")])
    assert as_indexed(outer) == as_tarfile_says(outer)
    for form in ("gnu", "pax", "ustar", "v7"):
        path = tmp_path / f"{form}.tar"
        names = ["inner.tar", "outer.tar", *(["long" * 40] if form in ("gnu", "pax") else [])]
        subprocess.run(["tar", "--format", form, "-cf", path, "-C", tmp_path, *names], check=True)
        assert as_indexed(path) == as_tarfile_says(path)


def test_large_members_are_stepped_over(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "SPARSE_MEMBER_BYTES", 1000)
    path = write_tar(tmp_path / "0.tar", [(f"{i}.bin", bytes(5000)) for i in range(20)], tarfile.PAX_FORMAT)
    windows = []
    one_by_one = tar_index._scan_one_by_one

    def counted(blocks, *arguments):
        windows.append(blocks.nbytes)
        return one_by_one(blocks, *arguments)

    monkeypatch.setattr(tar_index, "WINDOW_BYTES", 1024)
    monkeypatch.setattr(tar_index, "SPARSE_WINDOW_BYTES", 512)
    monkeypatch.setattr(tar_index, "_scan_one_by_one", counted)
    assert len(index_tar(path).names) == 20
    assert sum(windows) < 30 * 1024


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_tar_is_refused_wherever_it_ends(tmp_path, form):
    members = [*shard_members("train", range(3)), ("x" * 120, b"long name")]
    whole = write_tar(tmp_path / "whole.tar", members if form != tarfile.USTAR_FORMAT else members[:-1], form)
    content = whole.read_bytes()
    end = max(offset + -(-size // BLOCK) * BLOCK for _, offset, size in as_tarfile_says(whole))
    path = tmp_path / "0.tar"
    for length in [*range(0, end + BLOCK, 100), end + BLOCK - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(
            DatasetError, match=rf"^{path} is truncated: {length} bytes, there must be at least "
        ):
            index_tar(path)
    path.write_bytes(content[: end + BLOCK])
    assert as_indexed(path) == as_indexed(whole)


def test_what_is_no_tar_is_said_to_be_none(tmp_path):
    path = write_tar(tmp_path / "0.tar", shard_members("train", range(3)))
    content = path.read_bytes()
    packed = tmp_path / "0.tar.gz"
    packed.write_bytes(gzip.compress(content))
    with pytest.raises(DatasetError, match="is no tar file; it is compressed: unpack it with gunzip first"):
        index_tar(packed)
    path.write_bytes(b"<!DOCTYPE html>" * 100)
    with pytest.raises(DatasetError, match=rf"^{path} is no tar file$"):
        index_tar(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_found_or_harmless(tmp_path_factory, data):
    """A flipped bit in a header changes its sum; one in a content leaves the index as it was."""
    path = write_tar(tmp_path_factory.mktemp("tar") / "0.tar", shard_members("train", range(4)))
    before, content = as_indexed(path), bytearray(path.read_bytes())
    end = before[-1][1] + BLOCK
    place, bit = data.draw(st.integers(0, end - 1)), data.draw(st.integers(0, 7))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    in_header = not any(offset <= place < offset + -(-size // BLOCK) * BLOCK for _, offset, size in before)
    if in_header and place % BLOCK in (154, 155):
        return  # behind the digits of the sum stands a zero and a space, or the other way round
    if in_header:
        with pytest.raises(DatasetError, match=rf"^{path} is (no tar file|damaged|truncated)"):
            index_tar(path)
    else:
        assert as_indexed(path) == before
