"""Files that somebody else wrote: read without trusting their size, their kind, or the library that parses them."""

import codecs
import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import InputError, InterpError, LoadError
from interp.files import atomic_path

JSON_LIMIT = 64 << 20
"""Bytes of a JSON file that is read whole: a config, an index."""
VOCABULARY_LIMIT = 512 << 20
"""Bytes of a tokenizer's file."""


def regular(path: Path, limit: int | None = None) -> Path:
    """The path, if it is a regular file (or a link to one) of at most `limit` bytes; raises LoadError if not."""
    try:
        found = path.stat()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}", "expected a file") from None
    if not stat.S_ISREG(found.st_mode):
        raise LoadError(f"{path} is no regular file", "expected one that can be read from beginning to end")
    if limit is not None and found.st_size > limit:
        raise LoadError(f"{path} has {found.st_size:,} bytes", f"expected at most {limit:,}")
    return path


@contextmanager
def reading(path: Path | str, expected: str, hint: str = "fetch it again") -> Iterator[None]:
    """What a library raises over a damaged file, a panic of one in Rust too, becomes a LoadError of three lines.

    Warnings on the way there are not shown.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InterpError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if isinstance(error, PermissionError):
            raise LoadError(f"{path} may not be read", "expected a file with permission to read it") from None
        said = re.sub(r"\x1b\[\d*m", "", next(iter(str(error).splitlines()), "")) or type(error).__name__
        plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in said[:120])
        raise LoadError(f"{path} cannot be read: {plain}", expected, hint) from error


def as_text(raw: bytes, where: object) -> str:
    """UTF-8 without byte-order mark, lines ending in newlines alone.

    Raises InputError, with the line, for what is no UTF-8, and for a zero byte, which text files have none of.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{where} is UTF-16 text", "expected UTF-8", "save it as UTF-8: iconv -f UTF-16 -t UTF-8")
    advice = "save it as UTF-8 text, or leave it out"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {line}: not UTF-8 ({error.reason})", "expected a text file", advice) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{where}, line {line}: a zero byte, as in binary files", "expected a text file", advice)
    return plain_lines(text)


def plain_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def silenced() -> Iterator[None]:
    """Standard error of the whole process goes nowhere: a library in Rust prints its panic there before it raises."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up; it then raises what is no Exception."""
    return type(error).__name__ == "PanicException"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises LoadError for what is none, for an entry that is there twice, and for a file that is not
    regular or beyond `JSON_LIMIT`."""
    with reading(path, "expected JSON", ""):
        data = json.loads(regular(path, JSON_LIMIT).read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    if not isinstance(data, dict):
        raise LoadError(f"{path} holds {type(data).__name__}", "expected a JSON object")
    return data


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"entry {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")
