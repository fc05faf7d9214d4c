from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rest_deploy.embed.entries import Entry, read_entries, write_list
from rest_deploy.errors import InputError

SOME = [Entry(f"photo {number}\n.png", "", -1, f"{number}:1") for number in range(10)]


def test_list_is_cut_into_shards(tmp_path: Path) -> None:
    listed = write_list(SOME, tmp_path / "list", 4)
    assert (listed.count, len(listed.offsets)) == (10, 3)
    assert [listed.size_of(shard) for shard in range(3)] == [4, 4, 2]
    for shard, offset in enumerate(listed.offsets):
        found = list(read_entries(listed.path, offset, listed.size_of(shard)))
        assert found == SOME[4 * shard : 4 * shard + 4]
    assert listed.sha256 == hashlib.sha256(listed.path.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list"]


@pytest.mark.parametrize(
    "other",
    [
        SOME[:-1],
        SOME[::-1],
        [*SOME[:-1], SOME[-1]._replace(id="else")],
        [*SOME[:-1], SOME[-1]._replace(stamp="9:2")],
    ],
)
def test_hash_tells_other_lists_apart(tmp_path: Path, other: list[Entry]) -> None:
    first = write_list(SOME, tmp_path / "first", 4)
    assert write_list(SOME, tmp_path / "again", 4).sha256 == first.sha256
    assert write_list(other, tmp_path / "other", 4).sha256 != first.sha256


@pytest.mark.parametrize("place", [0, 500, 999])
def test_an_id_twice_is_refused_and_named(tmp_path: Path, place: int) -> None:
    many = [Entry(f"{number}.png") for number in range(1000)]
    write_list(many, tmp_path / "good", 64)
    twice = [*many, many[place]._replace(place="elsewhere.png")]
    with pytest.raises(InputError, match=rf"like {place}\.png;"):
        write_list(twice, tmp_path / "twice", 64)


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image"):
        write_list([], tmp_path / "list", 4)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'caf\\udce9\.png' is not UTF-8"):
        write_list([Entry("caf\udce9.png")], tmp_path / "list", 4)
