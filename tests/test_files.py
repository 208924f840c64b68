"""Files are written whole or not at all."""

from pathlib import Path

import pytest

from ragfit.files import next_free, write_whole


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    for text, written in (("é\ud800", b"\xc3\xa9\\ud800"), (b"\x00", b"\x00")):
        write_whole(path, text)
        assert path.read_bytes() == written and list(path.parent.iterdir()) == [path]


def test_what_was_there_stays_where_the_new_text_cannot_be_written(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", "old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_the_next_free_name(tmp_path):
    for name in ("checkpoint.1", "checkpoint.2", "checkpoint.4"):
        (tmp_path / name).mkdir()
    assert next_free(tmp_path, "checkpoint") == tmp_path / "checkpoint.3"
