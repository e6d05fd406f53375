"""Files and folders appear whole or not at all."""

import contextlib

from chordflow import disk


def test_a_file_that_fails_half_way_leaves_the_older_one(tmp_path):
    path = disk.write_whole(tmp_path / "a.bin", b"old")
    with contextlib.suppress(RuntimeError), disk.whole_file(path) as temporary:
        temporary.write_bytes(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_a_folder_replaces_an_older_one_only_when_it_is_whole(tmp_path):
    place = tmp_path / "above" / "folder"
    with disk.whole_folder(place) as temporary:
        (temporary / "old").touch()
    with contextlib.suppress(RuntimeError), disk.whole_folder(place, sync=True) as temporary:
        (temporary / "half").touch()
        raise RuntimeError
    assert [file.name for file in place.iterdir()] == ["old"]
    with disk.whole_folder(place, sync=True) as temporary:
        (temporary / "new").touch()
    assert [file.name for file in place.iterdir()] == ["new"]
    assert [file.name for file in place.parent.iterdir()] == ["folder"]
