"""A text from a file is its words: no byte-order mark, no carriage return, wherever it comes from."""

import io
import sys

import pytest
from command_line import interp

PLAIN = "The river was long\n"
WAYS = {
    "a byte-order mark": b"\xef\xbb\xbfThe river was long\n",
    "a carriage return": b"The river was long\r\n",
    "both": b"\xef\xbb\xbfThe river was long\r\n",
    "an old Macintosh": b"The river was long\r",
}


def read(capsys, monkeypatch, data: bytes, *options: object) -> str:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    done = interp(capsys, "next-token", "--steps", 1, "--format", "csv", "--quiet", *options)
    assert done.code == 0, done.err
    return done.out


@pytest.mark.parametrize("way", list(WAYS))
def test_marks_of_the_file_are_no_text(tmp_path, capsys, monkeypatch, way) -> None:
    """From a file, from the standard input, line by line, and as ids in JSON lines: the same table."""
    file = tmp_path / "text.txt"
    file.write_bytes(WAYS[way])
    expected = read(capsys, monkeypatch, b"", *PLAIN.split("\n")[:1])
    for options in (("--file", file), ("--file", "-"), ("--file", file, "--lines"), ("--file", "-", "--lines")):
        assert read(capsys, monkeypatch, WAYS[way], *options) == expected
    assert read(capsys, monkeypatch, b"", "The river was long\\r") != expected
    ids = tmp_path / "ids.jsonl"
    ids.write_bytes(WAYS[way].replace(b"The river was long", b"[3, 1, 4]"))
    assert read(capsys, monkeypatch, b"", "--tokens", ids) == read(capsys, monkeypatch, b"", "--tokens", "3 1 4")


def test_a_file_of_a_mark_alone_is_empty(tmp_path, capsys) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xef\xbb\xbf\r\n")
    done = interp(capsys, "next-token", "--file", file)
    assert done.code == 2
    assert "is empty" in done.err
