"""Many texts, with labels, as token ids: from files or from Python. What `interp.store.writing` reads.

Only token ids are kept, four bytes a position; the activations made of them are a thousand times larger.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from interp.errors import InputError, InterpError, LoadError, NotFoundError
from interp.models.gpt import HookedGPT
from interp.text.documents import LINES, SEPARATOR, decoded

SPLITS = ("train", "validation", "test")
COLUMNS = ("text", "position", "token", "split", "sequence", "place", "shard", "row")
"""Columns that every manifest has; labels need other names."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """One text: as a string, as words (joined by single spaces), or as token ids (used as they are)."""

    text: str = ""
    words: Sequence[str] = ()
    tokens: Sequence[int] = ()
    id: str = ""
    """Decides the split, together with the seed; without one the tokens do, so that equal texts stay together."""
    labels: Mapping[str, Any] = field(default_factory=dict)
    """Name -> a value for the whole text; or a list with a value for each word (it goes to the word's last token), or
    for each token where there are no words. None is no label. A label `split` puts the text in that split."""


Texts: TypeAlias = str | Sequence[str | Text | Sequence[int]] | Tensor
"""A text or several, or token ids: lists of any length, or a tensor [batch pos]."""


class Column(NamedTuple):
    """A label of every position, as its distinct values and which of them each position has (-1: none)."""

    values: tuple[Any, ...]
    codes: np.ndarray

    @property
    def kind(self) -> str:
        """bool, int, float or string: what holds all values."""
        kinds = {type(value) for value in self.values}
        if kinds <= {bool}:
            return "bool"
        return "string" if str in kinds else "float" if float in kinds else "int"


@dataclass(frozen=True)
class Corpus:
    """All texts as token ids, one after the other, without beginning-of-text tokens."""

    ids: tuple[str, ...]
    split: np.ndarray
    """[text], numbers of SPLITS."""
    tokens: np.ndarray
    """[position]"""
    starts: np.ndarray
    """[text + 1], where each text begins in `tokens`."""
    labels: dict[str, Column]

    def sha256(self) -> str:
        """Of everything here: two corpora with one hash give the same activations, manifest and split."""
        digest = hashlib.sha256(json.dumps(self.ids).encode())
        for array in (self.split, self.tokens, self.starts, *(column.codes for column in self.labels.values())):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr([(name, column.values) for name, column in self.labels.items()]).encode())
        return digest.hexdigest()


def read_texts(path: str | Path, *, lines: bool = False) -> list[Text]:
    """The texts in a file, told by its ending.

    `.jsonl`: one object a line, with `text`, `words` or `tokens`, perhaps `id`; all other entries are labels.
    `.parquet`: the same, as columns. Anything else is plain text: documents with form feeds between them, or with
    `lines` each line that is not blank. A byte-order mark goes, CRLF and CR become newlines.

    Raises NotFoundError or InputError, with the number of the line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}", "expected plain text, JSON lines (.jsonl) or Parquet")
    try:
        if path.suffix == ".parquet":
            found = [_entry(row, f"{path}, row {n}") for n, row in enumerate(_parquet_rows(path))]
        elif path.suffix in LINES:
            rows = enumerate(decoded(path).split("\n"), start=1)
            found = [
                _entry(_object(line, f"{path}, line {n}"), f"{path}, line {n}") for n, line in rows if line.strip()
            ]
        else:
            parts = decoded(path).split("\n" if lines else SEPARATOR)
            found = [Text(text=part if lines else part.strip("\n")) for part in parts if part.strip()]
    except OSError as error:
        if isinstance(error, InterpError):
            raise
        raise NotFoundError(f"{path} cannot be read: {error.strerror or error}", "expected a file of texts") from error
    if not found:
        raise InputError(f"{path} holds no text", "expected at least one")
    return found


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise LoadError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}", "expected Parquet") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no valid JSON ({error})", 'expected {"text": ..., "label": ...}') from None
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {line.strip()[:60]}", 'expected an object: {"text": ..., "label": ...}')
    return entry


def _entry(entry: dict[str, Any], where: str) -> Text:
    kinds = {"text": str, "words": str, "tokens": int}
    given = [name for name in kinds if entry.get(name)]
    if len(given) != 1:
        raise InputError(f"{where}: {' and '.join(given) or 'no text'}", "expected one of text, words, tokens")
    name = given[0]
    value = entry[name]
    if not isinstance(value, str if name == "text" else list) or not all(isinstance(x, kinds[name]) for x in value):
        raise InputError(f"{where}: {name} = {value!r}"[:200], "expected text, or lists of words or of token ids")
    labels = {name: value for name, value in entry.items() if name not in (*kinds, "id")}
    return Text(**{name: entry[name]}, id="" if entry.get("id") is None else str(entry["id"]), labels=labels)


def build_corpus(
    model: HookedGPT,
    texts: Texts,
    *,
    labels: Mapping[str, Sequence[Any]] | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Corpus:
    """All texts as token ids with split and labels.

    Args:
        labels: more labels: name -> one entry a text, each as in `Text.labels`.
        split: shares of train, validation and test.

    Raises InputError for an empty text, labels that do not fit, ids outside the vocabulary.
    """
    shares = _shares(split)
    given = list(_as_texts(texts))
    if not given:
        raise InputError("no texts", "expected at least one")
    for name, column in (labels or {}).items():
        if len(column) != len(given):
            raise InputError(f"label {name!r} has {len(column)} entries", f"expected {len(given)}, one a text")
    names = list(dict.fromkeys([*(labels or {}), *(name for text in given for name in text.labels)]))
    for name in names:
        if name in COLUMNS and name != "split":
            raise InputError(f"a label called {name!r}", f"expected another name than {', '.join(COLUMNS)}")
    coders = {name: _Coder(name) for name in names if name != "split"}
    tokens: list[np.ndarray] = []
    chosen: list[int] = []
    ids: list[str] = []
    for number, (text, (row, owner)) in enumerate(zip(given, _encoded(model, given), strict=True)):
        where = f"text {number}" + (f" ({text.id})" if text.id else "")
        _check_ids(model, row, where)
        entries = {**text.labels, **{name: column[number] for name, column in (labels or {}).items()}}
        for name, coder in coders.items():
            coder.add(entries.get(name), owner, 0 if text.tokens else len(text.words), where)
        key = text.id or hashlib.sha256(row.tobytes()).hexdigest()
        chosen.append(_choose(entries.get("split"), key, seed, shares, where))
        ids.append(text.id or str(number))
        tokens.append(row)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in tokens])]).astype(np.int64)
    columns = {name: coder.column() for name, coder in coders.items()}
    return Corpus(tuple(ids), np.array(chosen, dtype=np.int8), np.concatenate(tokens), starts, columns)


def _shares(split: Sequence[float]) -> np.ndarray:
    if len(split) != 3 or min(split) < 0 or not sum(split) > 0:
        raise InputError(f"split {tuple(split)}", "expected the shares of train, validation and test, such as .8 .1 .1")
    return np.cumsum(np.array(split, dtype=float) / sum(split))


def _choose(given: object, key: str, seed: int, shares: np.ndarray, where: str) -> int:
    """The split that was given, or the one that the hash of key and seed falls in."""
    if given is not None:
        if given not in SPLITS:
            raise InputError(f"{where}: split {given!r}", f"expected one of {', '.join(SPLITS)}")
        return SPLITS.index(str(given))
    drawn = int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64
    return int(np.searchsorted(shares[:2], drawn, side="right"))


def _as_texts(texts: Texts) -> Iterator[Text]:
    if isinstance(texts, Tensor):
        if texts.ndim != 2 or texts.is_floating_point():
            raise InputError(f"tokens of shape {tuple(texts.shape)} and {texts.dtype}", "expected ids [batch pos]")
        texts = texts.tolist()
    found: Iterable[object] = [texts] if isinstance(texts, str) else texts
    for one in found:
        if isinstance(one, Text):
            yield one
        elif isinstance(one, str):
            yield Text(text=one)
        elif isinstance(one, (Sequence, Tensor, np.ndarray)):
            yield Text(tokens=[int(token) for token in one])
        else:
            raise InputError(f"a text of type {type(one).__name__}", "expected text, Text, or a list of token ids")


def _encoded(model: HookedGPT, texts: list[Text], at_once: int = 512) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids of each text; and of which word each token is the last (-1: of none), without words its own number."""
    for start in range(0, len(texts), at_once):
        chunk = texts[start : start + at_once]
        strings = [" ".join(text.words) if text.words else text.text for text in chunk if not text.tokens]
        try:
            made = iter(model._tokenizer().backend.encode_batch(strings, add_special_tokens=False) if strings else ())
        except (UnicodeEncodeError, TypeError):
            raise InputError("a text with lone surrogates", "expected valid Unicode") from None
        for text in chunk:
            if text.tokens:
                yield np.array(text.tokens, dtype=np.int32), np.arange(len(text.tokens))
                continue
            encoding = next(made)
            owner = _last_tokens(text.words, encoding.offsets) if text.words else np.arange(len(encoding.ids))
            yield np.array(encoding.ids, dtype=np.int32), owner


def _last_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """[token] the number of the word whose last character the token ends with; -1 for tokens inside a word."""
    ends = np.append(np.cumsum([len(word) + 1 for word in words]) - 1, np.iinfo(np.int64).max)
    first, last = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    owner = np.searchsorted(ends, first, side="right")
    owner[ends[owner] > last] = -1
    owner[:-1][owner[:-1] == owner[1:]] = -1  # a character in several tokens: the last has it all
    return owner


def _check_ids(model: HookedGPT, row: np.ndarray, where: str) -> None:
    if not len(row):
        raise InputError(f"{where} is empty", "expected at least one token")
    wrong = row[(row < 0) | (row >= model.config.d_vocab)]
    if len(wrong):
        raise InputError(f"{where}: token id {wrong[0]}", f"expected 0 to {model.config.d_vocab - 1}, this vocabulary")


@dataclass
class _Coder:
    """Gathers one label as codes, position by position."""

    name: str
    numbers: dict[tuple[type, Any], int] = field(default_factory=dict)
    parts: list[np.ndarray] = field(default_factory=list)

    def add(self, value: object, owner: np.ndarray, words: int, where: str) -> None:
        if not isinstance(value, (list, tuple, np.ndarray)):
            self.parts.append(np.full(len(owner), self._code(value, where), dtype=np.int32))
            return
        codes = np.array([*(self._code(one, where) for one in value), -1], dtype=np.int32)
        found, expected = len(codes) - 1, f"{words}, one a word" if words else f"{len(owner)}, one a token"
        if found != (words or len(owner)):
            raise InputError(f"{where}: label {self.name!r} has {found} values", f"expected {expected}")
        self.parts.append(codes[owner])  # -1 picks the last entry, which is -1

    def _code(self, value: object, where: str) -> int:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or value != value:  # None, or not a number
            return -1
        if not isinstance(value, (str, int, float)):
            raise InputError(f"{where}: label {self.name!r} is {value!r}"[:200], "expected text, a number, true, false")
        return self.numbers.setdefault((type(value), value), len(self.numbers))

    def column(self) -> Column:
        kinds = {kind for kind, _ in self.numbers}
        if str in kinds and len(kinds) > 1:
            raise InputError(f"label {self.name!r} is text in some places and a number in others", "expected one kind")
        return Column(tuple(value for _, value in self.numbers), np.concatenate(self.parts))
