"""The training data: markup is gone, text is kept, nothing held out is trained on, copies can be known."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from interp.errors import InputError, LoadError, NotFoundError
from interp.text.documents import SEPARATOR
from interp.text.tokenizer import Tokenizer
from interp.training import corpus

PAGE = '<page><title>{title}</title><revision><text xml:space="preserve">{text}</text></revision></page>\n'
LONG = "The quick brown fox jumps over the lazy dog, again and again and again. " * 5


def dump(pages: dict[str, str]) -> str:
    body = "".join(PAGE.format(title=title, text=text) for title, text in pages.items())
    return f"<mediawiki>{body}</mediawiki>"


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("'''Alan''' ''Turing''", "Alan Turing"),
        ("a [[cat]] and [[dog|dogs]]", "a cat and dogs"),
        ("[[Image:x.jpg|thumb|A [[nested]] caption]]before", "before"),
        ("text [[Category:People]][[fr:Texte]][[zh-min-nan:X]]", "text"),
        ("{{Infobox|name={{nested|1}}|x}}after", "after"),
        ("one\n{| class=x\n|-\n| {{cell}} || b\n{|\n| inner\n|}\n|}\ntwo", "one\n\ntwo"),
        ("see [http://example.org the page] and [http://example.org]", "see the page and"),
        ('fact<ref name="a">a source</ref>, and<ref name=b /> more', "fact, and more"),
        ("a<!-- hidden -->b", "a b"),
        ("x <math>\\frac{1}{2}</math> y", "x y"),
        ("salt &amp; pepper, caf&eacute;, 5&nbsp;km &mdash; far", "salt & pepper, café, 5 km — far"),
        ("== History ==\n* one\n# two\n:: three", "History\none\ntwo\nthree"),
        ("Body.\n== See also ==\n* [[Other]]", "Body."),
        ("line<br/>break <small>small</small>", "line break small"),
    ],
)
def test_markup_becomes_plain_text(markup: str, plain: str) -> None:
    assert corpus.clean(markup) == plain


def test_plain_text_is_left_alone() -> None:
    plain = "Water boils at 100 degrees; 3 < 4 and a > b.\n\nA second paragraph (with brackets), and more."
    assert corpus.clean(plain) == plain


def test_only_articles_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml.gz"
    pages = {
        "Fox": LONG,
        "Talk:Fox": LONG,
        "User talk:Someone": LONG,
        "Foxes": "#REDIRECT [[Fox]]",
        "Stub": "Too short.",
        "R&amp;D: a history": "&lt;b&gt;Bold&lt;/b&gt; " + LONG,
    }
    path.write_bytes(gzip.compress(dump(pages).encode()))
    found = list(corpus.articles(path))
    assert [text.split("\n")[0] for text in found] == ["Fox", "R&D: a history"]
    assert found[0] == "Fox\n\n" + LONG.strip()
    assert found[1].startswith("R&D: a history\n\nBold The quick")


def test_a_missing_corpus_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.gz"):
        next(corpus.articles(Path("nowhere.gz")))


def test_split_holds_out_the_last_bytes() -> None:
    texts = [f"{i:03d}" + "é" * 50 for i in range(100)]
    train, held_out = corpus.split(texts, 0.05)
    assert train + held_out == texts
    share = sum(len(x.encode()) for x in held_out) / sum(len(x.encode()) for x in texts)
    assert 0.05 <= share <= 0.06


def test_prepare_trains_on_nothing_held_out(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(60)]
    pages = {f"Page {i}": " ".join(words[(i * 7 + j) % 60] for j in range(80)) for i in range(40)}
    path = tmp_path / "dump.xml"
    path.write_text(dump(pages))
    corpus.prepare(path, tmp_path / "out", vocabulary=400)
    train, held_out = ((tmp_path / "out" / name).read_text().split(SEPARATOR) for name in ("train.txt", "held_out.txt"))
    assert len(train) + len(held_out) == 40
    assert not set(train) & set(held_out)
    tokenizer = corpus.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokens = np.fromfile(tmp_path / "out" / "train.bin", "<u2")
    assert (tokens == 0).sum() == len(train)
    assert tokenizer.decode(tokens.tolist(), skip_special_tokens=False).split(corpus.END_OF_TEXT)[1:] == train
    before = (tmp_path / "out" / "train.bin").stat().st_mtime_ns
    corpus.prepare(path, tmp_path / "out", vocabulary=400)
    assert (tmp_path / "out" / "train.bin").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another corpus or vocabulary"):
        corpus.prepare(path, tmp_path / "out", vocabulary=401)
    path.write_text(dump(pages) + "\n")
    with pytest.raises(InputError, match="another corpus or vocabulary"):
        corpus.prepare(path, tmp_path / "out", vocabulary=400)
    assert (tmp_path / "out" / "train.bin").stat().st_mtime_ns == before


def test_a_dump_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    whole = gzip.compress(dump({"Fox": LONG}).encode())
    for name, data, error in (
        ("cut.gz", whole[:-20], LoadError),
        ("none.gz", b"not gzip", LoadError),
        ("broken.gz", whole[:10] + b"\xff" * 40, LoadError),
        ("empty.xml", b"<mediawiki></mediawiki>", InputError),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(error, match=name):
            corpus.prepare(tmp_path / name, tmp_path / "out", vocabulary=300)
    assert not (tmp_path / "out").exists()


def test_any_bytes_survive_the_tokenizer() -> None:
    tokenizer = corpus.train_tokenizer(["plain English only"], 300)
    text = "naïve 日本語 🦊\t\x07\n\n  end"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id(corpus.END_OF_TEXT) == 0
    assert corpus.encode([text], tokenizer).tolist() == [0, *ids]


def test_a_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="256"):
        corpus.train_tokenizer(["text"], 256)


@pytest.mark.parametrize("length", [16, 64, 255])
@pytest.mark.parametrize("kind", [corpus.pieces, corpus.periods])
def test_what_counts_as_known_follows_from_what_came_before(kind, length: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(20):
        order, known = kind(np.random.default_rng(seed), length)
        assert len(order) == len(known) == length
        pairs = [(order[i - 1], order[i]) for i in range(1, length)]
        for i in range(length):
            if known[i]:
                assert pairs[i - 1] in pairs[: i - 1], "a known token must follow its predecessor earlier, too"
        assert known.sum() > length / 4
        first = int(order.max()) + 1
        assert not known[:first].any(), "new random tokens cannot be known"


def test_pieces_do_not_come_in_a_fixed_order() -> None:
    order, _ = corpus.pieces(np.random.default_rng(0), 128)
    first = int(order.max()) + 1
    assert any(order[i] != order[i - first] for i in range(first, 128)), "the period of a sequence must not tell"


def test_the_held_out_sample_is_clean_text() -> None:
    from interp.text.documents import read_documents
    from interp.training.evaluation import SAMPLE

    documents = read_documents(SAMPLE)
    text = "".join(documents)
    assert 150_000 < len(text.encode()) < 300_000
    assert not re.search(r"\{\{|\}\}|\[\[|\]\]|'''|&[a-z]+;|<ref|^\|", text, re.MULTILINE)


# Text files.


def test_documents_come_from_files_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\x0c\nfour\n\x0c \n")
    (tmp_path / "a.jsonl").write_text('{"text": "five\\r\\nsix", "label": 1}\n\n"seven \\u00e9"\n{"text": ""}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.md").write_text("eight")
    (tmp_path / "sub" / "d.csv").write_text("not taken")
    (tmp_path / ".hidden.txt").write_text("nor this")
    expected = ["five\nsix", "seven é", "one\ntwo\nthree", "four", "eight"]
    assert corpus.documents([tmp_path]) == expected
    assert corpus.documents([tmp_path / "sub" / "d.csv", tmp_path / "sub"]) == ["not taken", "eight"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "a.txt holds no text"),
        ("a.txt", b" \n\x0c\n", "a.txt holds no text"),
        ("a.txt", b"fine\n\nab\xff", "a.txt, line 3: not UTF-8"),
        ("a.txt", "fine".encode("utf-16"), "a.txt is UTF-16 text"),
        ("a.txt", b"fine\nx\0", "a.txt, line 2: a zero byte"),
        ("a.jsonl", b'{"text": "fine"}\n{"label": 1}\n', "a.jsonl, line 2: .*label"),
        ("a.jsonl", b'"fine"\r\n\r\n{"text": \n', "a.jsonl, line 3: "),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: "),
        ("a.jsonl", b'["fine"]\n', "a.jsonl, line 1: "),
        ("a.jsonl", b'"half a character: \\ud800"\n', "a.jsonl, line 1: "),
        ("a.csv", b"fine", "files with text that end in .txt"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        corpus.prepare(folder if name == "a.csv" else folder / name, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "out").exists()


def test_a_missing_text_is_named_before_any_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(NotFoundError, match=r"no corpus at .*b\.txt"):
        corpus.prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out")


def test_one_text_is_cut_and_many_are_not() -> None:
    whole = "".join(f"wörd{i} " for i in range(1000))
    for texts in ([whole], [whole[:300], whole[300:]]):
        train, held_out = corpus.split_text(texts)
        assert "".join(train + held_out) == whole
        assert abs(len("".join(held_out).encode()) / len(whole.encode()) - 0.1) < 0.005
        assert held_out[0].startswith("wörd")
    many = whole.split()
    train, held_out = corpus.split_text(many)
    assert train + held_out == many
    assert len("".join(held_out).encode()) == pytest.approx(0.1 * len("".join(many).encode()), rel=0.01)


@pytest.mark.parametrize("characters", [False, True])
def test_no_held_out_text_is_trained_on(tmp_path: Path, characters: bool) -> None:
    path = tmp_path / "a.txt"
    text = "the river runs to the sea\n" * 90 + "zebra quagga\n" * 18
    path.write_text(text)
    corpus.prepare(path, tmp_path / "out", 300, characters=characters)
    tokenizer = Tokenizer.from_directory(tmp_path / "out")
    assert tokenizer is not None
    tokens = np.fromfile(tmp_path / "out" / "train.bin", "<u2")
    train, held_out = ((tmp_path / "out" / name).read_text() for name in ("train.txt", "held_out.txt"))
    assert tokens[0] == 0
    assert tokenizer.to_string(tokens[1:].tolist()) == train
    assert text.strip() == train + held_out
    assert "river" in train
    assert "zebra" not in held_out[: held_out.index("zebra")]
    assert len(held_out.encode()) == pytest.approx(0.1 * len(text), rel=0.1)
    assert set("qz").isdisjoint("".join(train.split("zebra quagga\n")))


def test_the_corpus_of_another_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(LONG)
    corpus.prepare(path, tmp_path / "out", 300)
    path.rename(tmp_path / "b.txt")
    corpus.prepare(tmp_path / "b.txt", tmp_path / "out", 300)  # the same text by another name will do
    (tmp_path / "b.txt").write_text(LONG.replace("fox", "cat"))
    for options in ({}, {"characters": True}):
        with pytest.raises(InputError, match="another corpus or vocabulary"):
            corpus.prepare(tmp_path / "b.txt", tmp_path / "out", 300, **options)


def test_characters_round_trip(tmp_path: Path) -> None:
    text = "naïve 日本語 🦊\t\n\n  end \u2581 Ġ"
    tokenizer = Tokenizer(corpus.character_tokenizer([text]))
    tokenizer.save(tmp_path)
    loaded = Tokenizer.from_directory(tmp_path)
    assert loaded is not None
    for one in (tokenizer, loaded):
        ids = one.encode(text)
        assert one.to_string(ids) == text
        assert one.to_str_tokens(ids) == list(text)
        assert one.d_vocab == len(set(text)) + 2
        assert one.encode(text, prepend_bos=True) == [0, *ids]
        assert one.to_string(one.encode("name?")) == "na\ufffde\ufffd", "what it does not know is shown as unknown"
        assert one.encode(f"n{corpus.END_OF_TEXT}a") == [ids[0], 0, ids[1]]
    with pytest.raises(InputError, match="exactly one token"):
        loaded.to_single_token("?")


def test_bytes_are_the_smallest_vocabulary() -> None:
    tokenizer = corpus.train_tokenizer(["the the the the"], corpus.BYTES)
    text = "né 🦊"
    assert len(tokenizer.encode(text).ids) == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with pytest.raises(InputError, match="65536"):
        corpus.train_tokenizer(["text"], 70_000)
