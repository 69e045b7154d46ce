"""The training data: Wikipedia XML, text files or JSON lines -> documents -> tokens, and the copied sequences that
teach induction.

`prepare` does all of it once and leaves five files in a directory: `train.txt` and `held_out.txt` (UTF-8, documents
separated by a form feed), `tokenizer.json` (byte-level BPE, or characters), `train.bin` (little-endian uint16 tokens,
each document behind `<|endoftext|>`), which training maps into memory, and `corpus.json` (what they were made of).
"""

import gzip
import hashlib
import html
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from interp.errors import InputError, LoadError
from interp.files import atomic_write
from interp.text.documents import LINES, SEPARATOR, check_there, decoded
from interp.untrusted import plain_lines

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_SHARE = 0.05
"""Of a dump."""
TEXT_HELD_OUT_SHARE = 0.1
TEXTS = (".txt", ".text", ".md", *LINES)
"""Endings of the files that are taken from a folder."""
BYTES = 257
"""Size of the smallest byte-level vocabulary: every byte and the end of text."""
UNKNOWN = "\ufffd"
"""The token of every character that a character tokenizer does not know."""

_OTHER_NAMESPACE = re.compile(
    r"(?:(?:User|Wikipedia|Image|MediaWiki|Template|Help|Category|Portal)(?: talk)?|Talk|Special|Media|File):"
)
_LAST_SECTIONS = re.compile(
    r"^=+ *(?:see also|external links?|references?|notes|footnotes|further reading|bibliography|sources|links"
    r"|notes and references|selected bibliography|publications|discography|filmography) *:? *=+ *$.*",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
_BLOCKS = re.compile(
    r"<!--.*?-->|<(math|ref|gallery|table|timeline|pre|code|imagemap|div|nowiki)\b[^>]*?(?:/>|>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_INNER_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
_INNER_TABLE = re.compile(r"^[ :*]*\{\|(?:(?!\{\|).)*?^[ :*]*\|\}", re.DOTALL | re.MULTILINE)
_INNER_LINK = re.compile(r"\[\[([^\[\]|]*)((?:\|[^\[\]]*)?)\]\]")
_OUTER_LINK = re.compile(r"\[(?:https?|ftp|mailto)[^\s\]]*\s*([^\]]*)\]")


def articles(dump: Path) -> Iterator[str]:
    """Cleaned articles of a MediaWiki XML dump (plain or .gz), in its order, without redirects and other namespaces.

    Raises NotFoundError where there is none, LoadError for a file that cannot be read to its end.
    """
    check_there(dump)
    try:
        with gzip.open(dump) if dump.suffix == ".gz" else dump.open("rb") as file:
            raw = file.read().decode("utf-8", errors="ignore")
    except (EOFError, OSError, zlib.error) as error:
        raise LoadError(
            f"{dump} cannot be read: {error}", "expected a whole MediaWiki XML dump, plain or .gz"
        ) from error
    for page in re.finditer(r"<title>([^<]*)</title>(.*?)</page>", raw, re.DOTALL):
        text = re.search(r"<text[^>]*>(.*?)</text>", page[2], re.DOTALL)
        if text is None or _OTHER_NAMESPACE.match(page[1]) or re.match(r"\s*#redirect", text[1], re.IGNORECASE):
            continue
        body = clean(html.unescape(text[1]))
        if len(body) > 200:
            yield f"{html.unescape(page[1])}\n\n{body}"


def is_dump(sources: Sequence[Path]) -> bool:
    """Whether these are one MediaWiki XML dump, told by its ending (.xml, .gz) or its first word."""
    if len(sources) != 1 or not sources[0].is_file():
        return False
    with sources[0].open("rb") as file:
        return sources[0].suffix in (".xml", ".gz") or file.read(10) == b"<mediawiki"


def documents(sources: Sequence[Path]) -> list[str]:
    """The documents of UTF-8 text files, JSON lines (.jsonl, .ndjson) and folders of both, folders in order of names.

    A line of JSON is a text, or an object with one as "text". In all of them a byte-order mark goes, CRLF and CR become
    newlines, form feeds separate documents, and blank documents are left out.

    Raises NotFoundError, or InputError with the file and the line.
    """
    found: list[str] = []
    for source in sources:
        files = [source]
        if source.is_dir():
            files = sorted(path for path in source.rglob("[!.]*") if path.suffix in TEXTS and path.is_file())
        texts = [plain_lines(text) for file in files for text in _texts(file)]
        parts = [part.strip("\n") for text in texts for part in text.split(SEPARATOR) if part.strip()]
        if not parts:
            what = f"files with text that end in {', '.join(TEXTS)}" if source.is_dir() else "at least a few sentences"
            raise InputError(f"{source} holds no text", f"expected {what}", "choose another, or write into it first")
        found += parts
    return found


def _texts(path: Path) -> list[str]:
    whole = decoded(path)
    if path.suffix not in LINES:
        return [whole]
    lines = enumerate(whole.split("\n"), start=1)
    return [_text_of(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _text_of(line: str, where: str) -> str:
    try:
        entry = json.loads(line)
        text = entry["text"] if isinstance(entry, dict) else entry
        text.encode()  # fails for what is no string, and for half a character
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{where}: {line[:60]}", 'expected {"text": "..."} or "..."', "mend or remove it") from None
    return str(text)


def clean(text: str) -> str:
    """Wiki markup -> plain paragraphs: tables, templates, images, notes and closing lists of links are dropped, links
    keep their label, list marks and emphasis go."""
    text = _BLOCKS.sub(" ", text.replace("\r", "").replace(SEPARATOR, ""))
    text = _repeat(_INNER_TEMPLATE, "", text)
    text = _repeat(_INNER_TABLE, "", text)
    text = _repeat(_INNER_LINK, _link_label, text)
    text = _OUTER_LINK.sub(r"\1", text)
    text = _LAST_SECTIONS.sub("", text)
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"</?[a-zA-Z][^<>]*>", "", text)
    text = html.unescape(text).replace("\xa0", " ")
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"^\s*(?:[{|!].*|-{4,}|__[A-Z]+__)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^=+ *(.*?) *=+ *$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^[*#:;]+ *", "", text, flags=re.MULTILINE)
    text = re.sub(r"\( *[,;]? *\)", "", text)
    text = re.sub(r"\bhttps?://\S+", "", text)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ([,.;:)])", r"\1", text)
    text = re.sub(r" *\n *", "\n", text)
    return re.sub(r"\n{2,}", "\n\n", text).strip()


def _repeat(pattern: re.Pattern[str], replacement: object, text: str, limit: int = 12) -> str:
    """Innermost first, until nothing changes: that is how nested brackets are undone."""
    for _ in range(limit):
        text, count = pattern.subn(replacement, text)  # type: ignore[call-overload]
        if not count:
            break
    return text


def _link_label(match: re.Match[str]) -> str:
    target, label = match[1].strip(), match[2]
    if re.match(r"(?:Image|File|Media|Category|[a-z]{2,3}(?:-[a-z]+)*|simple):", target):
        return ""
    return label.rsplit("|", 1)[-1] if label else target.removeprefix(":")


def split(texts: Iterable[str], held_out_share: float = HELD_OUT_SHARE) -> tuple[list[str], list[str]]:
    """The articles before, and from, the one that crosses the last `held_out_share` of the bytes."""
    texts = list(texts)
    ends = np.cumsum([len(text.encode()) for text in texts])
    first = int(np.searchsorted(ends, ends[-1] * (1 - held_out_share))) if texts else 0
    return texts[:first], texts[first:]


def split_text(texts: Sequence[str], share: float = TEXT_HELD_OUT_SHARE) -> tuple[list[str], list[str]]:
    """As `split`; but where that holds out more than twice the share, its first document is cut behind a space."""
    train, held_out = split(texts, share)
    held, whole = (sum(len(text.encode()) for text in part) for part in (held_out, texts))
    if held > 2 * share * whole:
        head = held_out[0].encode()[: int(held - share * whole)].decode(errors="ignore")
        cut = max(head.rfind(" "), head.rfind("\n")) + 1 or len(head)
        train, held_out = [*train, head[:cut]], [held_out[0][cut:], *held_out[1:]]
    return train, held_out


def character_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """One token a character: `<|endoftext|>`, U+FFFD for every character that is not in the texts, then theirs."""
    found = sorted(set().union(*texts) - {UNKNOWN})
    ids = {piece: token for token, piece in enumerate([END_OF_TEXT, UNKNOWN, *found])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m)."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): token 0 is `<|endoftext|>`, then the 256 bytes; with
    a vocabulary of 257 these alone."""
    if not BYTES <= vocabulary <= 1 << 16:
        raise InputError(
            f"vocabulary {vocabulary}",
            f"expected {BYTES} (256 bytes and the end of text) to {1 << 16} (16 bits a token)",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(texts: Iterable[str], tokenizer: Tokenizer) -> np.ndarray:
    """One row of uint16 tokens; every text behind `<|endoftext|>`."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts = [np.array([end, *encoding.ids], np.uint16) for encoding in tokenizer.encode_batch(list(texts))]
    return np.concatenate(parts) if parts else np.empty(0, np.uint16)


def prepare(
    sources: Path | Sequence[Path],
    out: Path,
    vocabulary: int = 4096,
    *,
    characters: bool = False,
    check: Callable[[np.ndarray], object] | None = None,
) -> None:
    """Clean, split, make the tokenizer and encode; leaves the files named above in `out`, unless they are there.

    Args:
        sources: a dump, or what `documents` takes. Of these a tenth is held out, of a dump a twentieth.
        vocabulary: tokens at most.
        characters: one token a character, held-out text's too, in place of byte pairs.
        check: called with the training tokens before anything is written.

    Raises InputError when `out` holds those of another corpus or vocabulary, or when there is too little text.
    """
    sources = [sources] if isinstance(sources, Path) else list(sources)
    for source in sources:
        if not source.is_dir():
            check_there(source)
    texts: list[str] = []
    made_of: dict[str, object] = {"vocabulary": vocabulary}
    dump = is_dump(sources)
    if dump:
        made_of = {"dump": sources[0].name, "bytes": sources[0].stat().st_size, **made_of}
    else:
        texts = documents(sources)
        whole = SEPARATOR.join(texts).encode()
        digest = hashlib.sha256(whole).hexdigest()
        made_of = {"sha256": digest, "bytes": len(whole), **made_of}
    made_of |= {"characters": True} if characters else {}
    record = out / "corpus.json"
    if record.is_file():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise LoadError(
                f"{record} cannot be read: {error}", "expected it as it was written", f"remove {out}"
            ) from error
        if found != made_of:
            raise InputError(
                f"{out} holds another corpus or vocabulary",
                f"expected {', '.join(f'{name} {value}' for name, value in made_of.items())}",
                "choose another folder, or remove this one",
            )
        return
    train, held_out = split(articles(sources[0])) if dump else split_text(texts)
    if not train:
        raise InputError(
            f"{sources[0]} holds {'too few' if held_out else 'no'} articles",
            "expected a MediaWiki XML dump",
            "text is taken from .txt, .md or .jsonl files that are not packed",
        )
    tokenizer = character_tokenizer(train + held_out) if characters else train_tokenizer(train, vocabulary)
    if tokenizer.get_vocab_size() > vocabulary:
        raise InputError(f"vocabulary {vocabulary}", f"expected {tokenizer.get_vocab_size()}, for its characters")
    tokens = encode(train, tokenizer)
    if check is not None:
        check(tokens)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / "held_out.txt", SEPARATOR.join(held_out))
    atomic_write(out / "train.txt", SEPARATOR.join(train))
    atomic_write(out / "tokenizer.json", tokenizer.to_str(pretty=False))
    atomic_write(out / "train.bin", tokens.astype("<u2").tobytes())
    atomic_write(record, json.dumps(made_of))  # last: where it stands, all is there


def pairs(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Two new places, alternating 4 to 8 times, then two others: what comes next is the place before the last one.

    One head that attends to the previous token is all this needs, so it brings such heads about; they are half of
    induction, and without them the other half has nothing to build on.
    """
    order: list[int] = []
    known: list[bool] = []
    while len(order) < length:
        again = int(rng.integers(2, 7))
        new = max(order, default=-1) + 1
        order += [new + i % 2 for i in range(again + 2)]
        known += [False, False] + [True] * again
    return np.array(order[:length]), np.array(known[:length])


def pieces(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """New places 0, 1, 2, ..., then pieces of them of 2 to 8 from random starts, and which of these continue a piece.

    Only a token's last occurrence with its predecessor tells it: neither the period of a sequence nor how long ago a
    token was seen helps. That leaves induction as the way to be right.
    """
    first = max(1, int(rng.integers(length // 4, length // 2 + 1)))
    order, known = [np.arange(first)], [np.zeros(first, bool)]
    filled = first
    while filled < length:
        run = min(int(rng.integers(2, 9)), first)
        start = int(rng.integers(0, first - run + 1))
        order.append(np.arange(start, start + run))
        known.append(np.arange(run) > 0)
        filled += run
    return np.concatenate(order)[:length], np.concatenate(known)[:length]


def periods(rng: np.random.Generator, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Places 0 to p - 1 again and again, p up to half the length, and which of them are not of the first round."""
    period = int(rng.integers(min(8, length // 2), length // 2 + 1))
    return np.arange(length) % period, np.arange(length) > period
