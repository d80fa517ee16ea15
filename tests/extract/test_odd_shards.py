"""Shards as people have them: links, joined and sparse tars, splits in names, several images, odd text files, forged headers."""

import io
import os
import re
import subprocess
import tarfile

import numpy as np
import pytest

from featcache.extraction.sources import resolve_source, shard_index, torchvision_sets
from featcache.extraction.sources.dataset_options import DatasetOptions
from featcache.extraction.sources.tar_index import BLOCK, index_tar
from featcache.store.errors import DatasetError, FeatcacheError, RequestError, UnavailableError
from support.datasets import encoded, make_shards, pixels, shard_members, write_tar

TRAIN = shard_members("train", range(10))


@pytest.fixture(autouse=True)
def data_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATCACHE_DATA", str(tmp_path / "data"))


def open_it(place, **options):
    return resolve_source(f"wds:{place}", DatasetOptions(**options))


def refused(place, message, kind: type[FeatcacheError] = DatasetError, **options):
    with pytest.raises(kind) as caught:
        open_it(place, **options)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def listing(source):
    return source._collection.listing


# Links and other members.


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_links_are_read_through(tmp_path, form):
    """As GNU tar packs a tree with ``cp -l`` and ``ln -s``; the long name needs a member of its own for the link's target."""
    folder = tmp_path / "tree"
    folder.mkdir()
    long = "long" * 30 if form in ("gnu", "pax") else "name"
    for row in range(6):
        name = f"{long}{row}" if row < 2 else str(row)
        (folder / f"{name}.png").write_bytes(encoded(pixels("train")[row]))
        (folder / f"{name}.cls").write_text(str(row % 2))
    for row in range(4):
        name = f"{long}{row}" if row < 2 else str(row)
        for suffix in (".png", ".cls"):
            if row % 2:
                os.link(folder / f"{name}{suffix}", folder / f"z{row}{suffix}")
            else:
                (folder / f"z{row}{suffix}").symlink_to(f"{name}{suffix}")
    subprocess.run(
        ["tar", "--sort=name", "--format", form, "-cf", tmp_path / "s.tar", "-C", folder, "."], check=True
    )
    source = open_it(tmp_path / "s.tar", resplit=True)
    assert len(listing(source).ids) == 10
    ids = list(listing(source).ids)
    for row in range(4):
        place = ids.index(f"s/./z{row}")
        assert source._collection.image(place).getpixel((0, 0)) == (200, 10 * row, 77)
        assert listing(source).labels[place] == row % 2
    assert listing(source).passed_over == {}


def member(name, kind=tarfile.REGTYPE, link="", content=b"", size=None):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content) if size is None else size
    return info, content


def write_members(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return path


def test_other_members_are_counted(tmp_path):
    path = write_members(
        tmp_path / "0.tar",
        [
            *(member(name, content=content) for name, content in TRAIN),
            member("x.png", tarfile.SYMTYPE, "/etc/passwd"),
            member("x.cls", tarfile.LNKTYPE, "../other.cls"),
            member("y.png", tarfile.SYMTYPE, "y.png"),
            member("pipe.png", tarfile.FIFOTYPE),
            member("folder", tarfile.DIRTYPE),
            member("w.svg", content=b"x"),
            member("._0.png", content=b"x"),
        ],
    )
    assert listing(open_it(path)).passed_over == {
        "links to files that are not in the shard": 3,
        "devices, pipes and other special members": 1,
        ".svg": 1,
    }
    half = write_members(
        tmp_path / "1.tar", [member("x.png", tarfile.SYMTYPE, "/etc/passwd"), member("x.cls", content=b"0")]
    )
    refused(half, "x has no image; x has .cls, and the file has links to files that are not in it")


def test_a_hard_link_that_gives_the_size_of_its_target(tmp_path):
    """Some programs write that size and no content, others the content again."""
    info, _ = member("b.png", tarfile.LNKTYPE, "a.png", size=700)
    first = member("a.png", content=b"\1" * 700)
    last = member("c.cls", content=b"1")
    plain = write_members(tmp_path / "0.tar", [first, last])
    header = info.tobuf(tarfile.USTAR_FORMAT)
    content = plain.read_bytes()
    for name, behind in (("bare", b""), ("again", b"\1" * 700 + bytes(1024 - 700))):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content[: BLOCK * 3] + header + behind + content[BLOCK * 3 :])
        index = index_tar(path)
        assert (index.names, index.sizes.tolist()) == (["a.png", "b.png", "c.cls"], [700, 700, 1])
        assert path.read_bytes()[index.offsets[1] :][:700] == b"\1" * 700


def test_sparse_members_are_refused(tmp_path):
    sparse = tmp_path / "hole.png"
    with sparse.open("wb") as file:
        file.write(b"x" * 4096)
        file.seek(2**20)
        file.write(b"y" * 4096)
    for form, message in (
        ("gnu", r"type 'S' \(a sparse file\)"),
        ("pax", "is a sparse file, .* without --sparse"),
    ):
        path = tmp_path / f"{form}.tar"
        subprocess.run(
            ["tar", "--sparse", "--format", form, "-cf", path, "-C", tmp_path, "hole.png"], check=True
        )
        refused(path, message)


def test_tars_joined_with_cat_are_refused(tmp_path):
    """Readers stop at the end of the first; the samples of the others would be gone."""
    parts = [write_tar(tmp_path / f"{n}.tar", TRAIN[n * 8 : n * 8 + 8]).read_bytes() for n in range(2)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(parts))
    refused(joined, "joined.tar has more members behind its end, at byte 10240: .* joined with cat")
    joined.write_bytes(parts[0] + b"\1" * 700)
    assert len(listing(open_it(joined)).ids) == 4


# Splits.


def test_splits_of_folders_in_any_spelling(tmp_path):
    usual = open_it(make_shards(tmp_path / "a"))
    other = make_shards(tmp_path / "b")
    (other / "train").rename(other / "Training")
    (other / "test").rename(other / "TEST")
    assert open_it(other).identity == usual.identity
    assert "splits of b: Training is train, TEST is test" in open_it(other).notes
    (other / "TEST").rename(other / "validation")
    refused(other, "has no split test; it has Training, validation: name one with --test-split")
    assert len(open_it(other, test_splits=("val",)).splits["test"]) == 5


def test_splits_in_the_names_of_shards(tmp_path):
    usual = make_shards(tmp_path / "usual")
    flat = tmp_path / "flat"
    flat.mkdir()
    for split in ("train", "test"):
        for path in (usual / split).glob("*.tar"):
            (flat / f"photos-{split}-{int(path.stem):04d}.tar").write_bytes(path.read_bytes())
    source = open_it(flat)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 10, "test": 5}
    assert any(
        "taken for splits by their names (test 2, train 3; wds:...?splits=none" in n for n in source.notes
    )
    for place in (f"{flat}/photos-{{train,test}}-{{0000..0001}}.tar", f"{flat}/*.tar"):
        assert set(open_it(place).splits["test"].labels.tolist()) == set(
            source.splits["test"].labels.tolist()
        )
    anew = open_it(f"{flat}?splits=none")
    assert sum(map(len, anew.splits.values())) == 15
    assert anew.identity["split_seed"] == 0
    (flat / "extra.tar").write_bytes((usual / "train" / "0.tar").read_bytes())
    refused(flat, "photos-.*tar name a split, extra.tar names none")
    refused(f"{flat}?splits=x", "splits of wds must be none, got 'x'", RequestError)


def test_patterns_may_spell_splits_as_they_like(tmp_path):
    make_shards(tmp_path)
    source = open_it(f"{tmp_path}/train/{{0..2}}.tar?Test={tmp_path}/test/{{0..1}}.tar")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 10, "test": 5}
    refused(
        f"{tmp_path}/train/{{0..2}}.tar?other={tmp_path}/test/{{0..1}}.tar",
        "has no split test; it has train, other",
    )


# Samples.


def test_shards_of_one_name_have_ids_of_their_own(tmp_path):
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "0.tar", TRAIN[:8])
        write_tar(tmp_path / folder / "1.tar", TRAIN[:4])
    source = open_it(f"{tmp_path}/{{a,b}}/0.tar")
    assert {one.rpartition("/")[0] for one in listing(source).ids} == {"a/0", "b/0"}
    refused(f"{tmp_path}/a/{{0,0}}.tar", "4 ids appear more than once")
    assert {one.rpartition("/")[0] for one in listing(open_it(f"{tmp_path}/a/{{0,1}}.tar")).ids} == {"0", "1"}


def test_one_of_several_images_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_index, "KEEP_FROM_BYTES", 0)
    members = [
        one
        for row in range(8)
        for one in (
            (f"{row}.png", encoded(pixels("train")[row])),
            (f"{row}.seg.png", encoded(pixels("test")[row % 5])),
            (f"{row}.cls", b"%d" % (row % 2)),
        )
    ]
    path = write_tar(tmp_path / "s.tar", members)
    refused(
        path,
        r"8 samples are not whole: 0 has 2 images; .*0 has .png, .seg.png, .cls: choose one as in wds:...\?image=png",
    )
    for _ in range(2):  # the kept index of one choice is not that of another
        plain, masks = open_it(f"{path}?image=png"), open_it(f"{path}?image=seg.png")
        assert plain._collection.image(3).getpixel((0, 0)) == (200, 30, 77)
        assert masks._collection.image(3).getpixel((0, 0)) == (50, 30, 77)
    assert (plain.identity["image"], masks.identity["image"]) == ("png", "seg.png")
    refused(f"{path}?image=jpg", "0 has no image .jpg")


def test_labels_in_json_are_named(tmp_path):
    members = [
        (f"{i}.{end}", content)
        for i in range(3)
        for end, content in (("png", TRAIN[0][1]), ("json", b'{"label": 1}'))
    ]
    path = write_tar(tmp_path / "s.tar", members)
    refused(
        path,
        "3 samples are not whole: 0 has no label .*0 has .png, .json: if a field .*json.FIELD; --target none",
    )
    refused(f"{path}?label=label", "label of wds must be cls, npy, or json.FIELD", RequestError)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"9" * 30, "must be the index of a class"),
        (b"9" * 5000, "must be an integer from 0, got '9999"),
    ],
)
def test_labels_that_are_no_classes(tmp_path, label, message):
    refused(write_tar(tmp_path / "s.tar", [*TRAIN[:4], ("x.png", TRAIN[0][1]), ("x.cls", label)]), message)


@pytest.mark.parametrize("label", [10**9, 2**62])
def test_labels_far_beyond_the_number_of_classes_are_numbered_anew(tmp_path, label):
    """Ids instead of indices: nothing of the size of the label is made."""
    members = [
        (name, content.replace(b"2", b"%d" % label) if name.endswith("cls") else content)
        for name, content in TRAIN
    ]
    source = open_it(write_tar(tmp_path / "s.tar", members))
    assert list(source.targets.names) == ["0", "1", str(label)]
    assert sum(list(source.splits[split].labels).count(2) for split in source.splits) == sum(
        name.endswith("cls") and content == b"2" for name, content in TRAIN
    )


def test_labels_that_count_from_one_are_said(tmp_path):
    members = [
        (name, b"%d" % (int(content) + 1) if name.endswith("cls") else content) for name, content in TRAIN
    ]
    source = open_it(write_tar(tmp_path / "s.tar", members))
    assert "s: 1 of 4 classes have no sample (0); labels count from 1" in source.notes


def npy(header):
    text = header.encode()
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        npy("{'descr': "),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 3000 + ")" * 3000 + "}"),
        npy("{'descr': '''"),
        b"\x93NUMPY\7\0",
        b"",
    ],
    ids=range(7),
)
def test_forged_arrays(tmp_path, content):
    path = write_tar(tmp_path / "s.tar", [("x.png", TRAIN[0][1]), ("x.npy", content)])
    refused(path, r"s\.tar: x\.npy is no array of numbers")


# Files beside the shards.


def test_text_files_that_are_not_utf8(tmp_path):
    folder = make_shards(tmp_path / "shards")
    (folder / "classnames.txt").write_bytes(b"caf\xe9\nb\nc\n")
    refused(folder, r"classnames.txt is not UTF-8 \(byte 3\); save it as UTF-8")
    (folder / "classnames.txt").write_bytes("\ufeffa\u2028x\r\nb\u2029y\r\nc\r\n\r\n".encode())
    assert open_it(folder).class_names == ("a\u2028x", "b\u2029y", "c")
    refused(f"{folder}?classes={folder}/train/0.tar", "0.tar is not UTF-8")
    (folder / "classnames.txt").unlink()
    os.mkfifo(folder / "classnames.txt")
    assert open_it(folder).class_names == ("0", "1", "2")  # no file, so there are no names
    for content, message in (
        (b"\xff\xfe", "nshards.txt is not UTF-8"),
        ("\u0661".encode(), "must be a number of shards"),
        (b"\xc2\xb2", "must be a number of shards"),
    ):
        (folder / "train" / "nshards.txt").write_bytes(content)
        refused(folder, message)


def test_compressed_shards_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.tar.gz").write_bytes(b"\x1f\x8b")
    refused(tmp_path / "a", r"has no tar files, .*; 0.tar.gz is compressed: unpack it first")
    refused(tmp_path / "a" / "0.tar.gz", "compressed: unpack it with gunzip first")
    write_tar(tmp_path / "a" / "1.tar", TRAIN)
    source = open_it(tmp_path / "a")
    assert listing(source).passed_over == {"compressed tar files": 1}
    assert "1 compressed tar files are not read: 0.tar.gz" in source.notes
    write_tar(tmp_path / "deep" / "x" / "y" / "0.tar", TRAIN)
    refused(tmp_path / "deep", "has no tar files, .*; there are some in .*/x/y")


def test_shards_beside_the_splits_are_said(tmp_path):
    folder = make_shards(tmp_path / "shards")
    write_tar(folder / "more.tar", TRAIN)
    assert "1 tar files beside the folders of the splits are not read: more.tar" in open_it(folder).notes


def test_shards_that_nshards_does_not_count_are_said(tmp_path):
    folder = make_shards(tmp_path / "shards")
    (folder / "train" / "nshards.txt").write_text("2")
    source = open_it(folder)
    assert "1 tar files of train/ beyond those that nshards.txt counts are not read: 2.tar" in source.notes
    assert "not put together with the others: split extra" in open_it(more_splits(folder), resplit=True).notes


def more_splits(folder):
    write_tar(folder / "extra" / "0.tar", TRAIN)
    (folder / "train" / "nshards.txt").write_text("3")
    return folder


def test_a_pipe_for_a_shard_is_refused(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    refused(tmp_path, "0.tar is a named pipe, not a regular file")


def test_patterns_without_end_are_refused(tmp_path):
    refused("{0..999999}{0..999999}.tar", "stands for more than 1,000,000 shards", RequestError)


def test_few_descriptors_are_enough(tmp_path, monkeypatch):
    source = open_it(make_shards(tmp_path / "shards"))
    really = os.open
    left = 1

    def opened(path, flags, *rest, **named):
        nonlocal left
        if str(path).endswith(".tar"):
            if left == 0:
                left = 1
                raise OSError(24, "Too many open files")
            left -= 1
        return really(path, flags, *rest, **named)

    monkeypatch.setattr("featcache.extraction.sources.webdataset.os.open", opened)
    assert [source.image("train", row).getpixel((0, 0))[1] for row in (0, 9, 0)] == [0, 90, 0]


def test_a_shard_that_is_gone_is_no_bad_image(tmp_path):
    source = open_it(make_shards(tmp_path / "shards"))
    (tmp_path / "shards" / "train" / "0.tar").unlink()
    with pytest.raises(UnavailableError, match="once it is there again, the same command resumes"):
        source.image("train", 0)


def test_a_shard_that_was_replaced_is_not_read_by_its_old_places(tmp_path):
    folder = make_shards(tmp_path / "shards")
    source = open_it(folder)
    path = folder / "train" / "0.tar"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[::-1])  # of the same size
    os.utime(path, (1, 1))
    with pytest.raises(UnavailableError, match=r"0\.tar has changed since it was indexed; start again"):
        source.image("train", 0)


def test_real_values_in_arrays_are_said(tmp_path):
    members = [
        (f"{i}.{end}", one) for i in range(8) for end, one in (("png", TRAIN[0][1]), ("npy", float_array(i)))
    ]
    path = write_tar(tmp_path / "s.tar", members)
    note = "s: labels are not all 0 or 1, so they are real values; for classes save their indices as .cls"
    assert note in open_it(path).notes
    assert note not in open_it(path, target="regression").notes


def float_array(value):
    buffer = io.BytesIO()
    np.save(buffer, np.float32(value))
    return buffer.getvalue()


# Forged headers.


def checked(header):
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def special(kind, content, size=None):
    header = bytearray(BLOCK)
    header[:4], header[100:108], header[156:157], header[257:265] = (
        b"PaxH",
        b"0000644\0",
        kind,
        b"ustar\00000"[:8],
    )
    header[124:136] = b"%011o\0" % (len(content) if size is None else size)
    return checked(header) + content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")


def with_size(content, field):
    header = bytearray(content[:BLOCK])
    header[124:136] = field.ljust(12, b"\0")[:12]
    return checked(header) + content[BLOCK:]


FORGED = {
    "base 256, huge": lambda t: with_size(t, b"\x80" + b"\xff" * 11),
    "base 256, negative": lambda t: with_size(t, b"\xff" * 12),
    "octal, huge": lambda t: with_size(t, b"77777777777"),
    "minus": lambda t: with_size(t, b"-0000000001"),
    "plus": lambda t: with_size(t, b"+0000000100"),
    "underscore": lambda t: with_size(t, b"0000000_01 "),
    "pax size, huge": lambda t: special(b"x", b"38 size=999999999999999999999999999999\n") + t,
    "pax size, negative": lambda t: special(b"x", b"11 size=-1\n") + t,
    "pax size, long": lambda t: special(b"x", b"5010 size=" + b"9" * 4999 + b"\n") + t,
    "pax length, beyond": lambda t: special(b"x", b"999999 path=x\n") + t,
    "pax length, 0": lambda t: special(b"x", b"0 path=x\n") + t,
    "pax length, short": lambda t: special(b"x", b"3 path=x\n") + t,
    "pax length, other digits": lambda t: special(b"x", "１２ path=x\n".encode()) + t,
    "pax length, many digits": lambda t: special(b"x", b"9" * 5000 + b" path=x\n") + t,
    "pax path with NUL": lambda t: special(b"x", b"17 path=a\0b.png\n\0") + t,
    "long names in a row": lambda t: special(b"L", b"a" * 600) * 1000 + t,
    "long name, cut": lambda t: special(b"L", b"", 2**19),
    "long name, minus": lambda t: checked(bytearray(special(b"L", b"x")[:124] + b"-0000000001\0" + special(b"L", b"x")[136:BLOCK])) + t,
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_headers(tmp_path, name):
    content = write_tar(tmp_path / "good.tar", TRAIN).read_bytes()
    path = tmp_path / "0.tar"
    path.write_bytes(FORGED[name](content))
    refused(path, rf"^{path}:? (is (damaged|truncated|no tar file)|a member of type|the name)")


def test_names_as_they_are_on_other_machines(tmp_path):
    assert np.array_equal(index_tar(write_tar(tmp_path / "e.tar", [])).sizes, [])
    refused(tmp_path / "e.tar", "holds no samples|no samples")
    refused(write_tar(tmp_path / "x.tar", [("", b"x"), (".png", b"x")]), "holds no samples")


# Datasets of torchvision.


class Photos:
    """A class of torchvision's form that has ``val`` where others have ``test``."""

    def __init__(self, root, split="train"):
        if split not in ("train", "val"):
            raise ValueError(
                f"Unknown value '{split}' for argument split. Valid values are {{'train', 'val'}}."
            )


def test_a_split_of_another_name_in_torchvision_is_not_passed_over():
    with pytest.raises(
        DatasetError, match=r"Photos has no split test \(.*'train', 'val'.*; name one with --test-split"
    ):
        torchvision_sets._refuse_other_splits(Photos, "x", DatasetOptions())
    torchvision_sets._refuse_other_splits(Photos, "x", DatasetOptions(resplit=True))
