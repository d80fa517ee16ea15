"""The scores of members that are through outlive a run, and nothing else does."""

from pathlib import Path

from featcache.probing.protocols.protocol import PAPER
from featcache.probing.training.unfinished import FOLDER, Unfinished

MEMBERS = PAPER.members(has_dropout=True)


def test_scores_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    mine, other = Unfinished(tmp_path / "out", "0123"), Unfinished(tmp_path / "out", "4567")
    assert mine.read() == []
    mine.write([{MEMBERS[0]: 1 / 3}])
    scores = {member: 1 / (3 + index) for index, member in enumerate(MEMBERS)}
    mine.write([scores, {MEMBERS[0]: 0.25}])
    other.write([{MEMBERS[5]: 0.5}])
    assert Unfinished(tmp_path / "out", "0123").read() == [scores, {MEMBERS[0]: 0.25}]
    mine.remove()
    mine.remove()
    assert mine.read() == []
    assert other.read() == [{MEMBERS[5]: 0.5}]
    other.remove()
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_damaged_counts_as_nothing(tmp_path: Path) -> None:
    kept = Unfinished(tmp_path, "0123")
    kept.write([{MEMBERS[0]: 0.25}])
    path = tmp_path / FOLDER / "0123.json"
    text = path.read_text()
    for damaged in (text.replace("0.25", "0.75"), text[:-9], "", "[]", '{"rounds": 3}'):
        assert damaged != text
        path.write_text(damaged)
        assert kept.read() == []
    path.write_text(text)
    assert kept.read() == [{MEMBERS[0]: 0.25}]
