"""Prompt sets from files, of whatever kind they are: told by what stands in them.

JSON lines of prompts; JSON lines of sentence beginnings whose subjects differ in number (Linzen et al. 2016); a JSON
list of inputs with outputs, which a template makes sentences of (Todd et al. 2024, "Function Vectors"); a table of
prompts, also of the indirect object task with the answers to be told from the sentence (Wang et al. 2022), and of
years of which all larger ones are right (Hanna et al. 2023, "How does GPT-2 compute greater-than?").
"""

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from interp.errors import InputError

FIELDS = ("clean", "corrupted", "answer", "wrong", "template", "answers", "wrongs")
LISTS = ("answers", "wrongs")
EXPECTED = 'expected {"clean": ..., "corrupted": ..., "answer": ..., "wrong": ...}'
AGREEMENT = {"clean_prefix": "clean", "patch_prefix": "corrupted", "clean_answer": "answer", "patch_answer": "wrong"}
"""Their names of our fields."""
EXAMPLES = re.compile(r'"examples"\s*:\s*\[')
"""In no JSON lines of prompts, for all in them is text."""
TWO_NAMES = re.compile(r"\b([A-Z]\w*) and ([A-Z]\w*)\b")
MASKS = ((r"(?<= the )\w+", "{place}"), (r"(?<= a )\w+(?= to| at)|(?<= an )\w+(?= to| at)", "{thing}"))
"""Words of an indirect object sentence that its template leaves open."""

Entry: TypeAlias = dict[str, Any]
"""Of a prompt some of FIELDS: text, those of LISTS several."""
Entries: TypeAlias = list[Entry]


def examples_in(text: str) -> bool:
    """Whether these are inputs with outputs, of which a template makes prompts."""
    start = text.lstrip()[:1]
    return start == "[" or (start == "{" and EXAMPLES.search(text) is not None)


def entries_in(text: str, where: str, template: str) -> Entries:
    """The prompts in the text of a file. Raises InputError as `parse_prompts`, which says what is read."""
    if examples_in(text):
        return _inputs_and_outputs(text, where, template)
    if template:
        raise InputError(f"a template for {where}", 'expected a JSON list of {"input": ..., "output": ...}')
    columns = text.partition("\n")[0].split(",")
    if not text.lstrip().startswith("{") and "clean" in [name.strip('" \r') for name in columns]:
        return _from_table(text, where)
    numbered = enumerate(text.split("\n"), start=1)
    return [_from_json(line, _Line(where, number)) for number, line in numbered if line.strip()]


@dataclass(frozen=True)
class _Line:
    """Where something stands, for messages."""

    where: str
    number: int

    def wrong(self, message: str, expected: str, hint: str = "") -> InputError:
        return InputError(f"{self.where}, line {self.number}: {message}", expected, hint)


def continuing(text: str, answer: str) -> str:
    """The answer as it continues the text: a space in front of a word, unless the text ends in one."""
    return answer if not text or text[-1].isspace() or not answer[:1].isalnum() else f" {answer}"


def _from_json(line: str, place: _Line) -> Entry:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise place.wrong(f"no valid JSON ({error})", EXPECTED) from None
    if not isinstance(entry, dict):
        raise place.wrong(repr(line.strip()[:60]), EXPECTED)
    for name, value in entry.items():
        if name in LISTS and not _texts(value):
            raise place.wrong(f"{name} is {json.dumps(value)[:60]}", 'expected a list of texts: ["53", "54"]')
        if name not in LISTS and not isinstance(value, str):
            raise place.wrong(f"{str(name)[:40]} is {json.dumps(value)[:60]}", EXPECTED + ", all of them text")
    if AGREEMENT.keys() <= entry.keys():
        entry = {ours: entry[theirs] for theirs, ours in AGREEMENT.items()} | {"template": entry.get("case", "")}
    return _prompt(entry, place)


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value)


def _prompt(entry: Mapping[str, Any], place: _Line) -> Entry:
    unknown = [name for name in entry if name not in FIELDS]
    if unknown:
        raise place.wrong(f"unknown entry {unknown[0]!r}", f"expected some of {', '.join(FIELDS)}")
    if not entry.get("clean"):
        raise place.wrong("no clean text", EXPECTED)
    if ("answers" in entry) != ("wrongs" in entry):
        raise place.wrong("answers without wrongs, or the reverse", "expected both lists, or neither")
    if "answers" in entry and ("answer" in entry or "wrong" in entry):
        raise place.wrong("lists of answers beside a single one", "expected answers and wrongs, or answer and wrong")
    return {name: tuple(value) if name in LISTS else value for name, value in entry.items()}


def _from_table(text: str, where: str) -> Entries:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = set(reader.fieldnames or ())
    read: Callable[[Mapping[str, str], _Line], Entry] = _prompt
    if columns & set(LISTS):
        raise _Line(where, 1).wrong("a column of lists", "expected answers and wrongs in JSON lines")
    if "corrupted_hard" in columns:
        read = _indirect_object
    elif "label" in columns:
        read = _greater
    prompts = []
    try:
        for row in reader:
            place = _Line(where, reader.line_num)
            if None in row or None in row.values():
                raise place.wrong("another number of cells", f"expected {len(columns)}, as in the first line")
            prompts.append(read(row, place))
    except csv.Error as error:
        raise _Line(where, reader.line_num).wrong(f"no valid table ({error})", "expected cells with commas") from None
    return prompts


def _greater(row: Mapping[str, str], place: _Line) -> Entry:
    """Right are all numbers of two digits above the label, wrong the others."""
    label, clean = row["label"].strip(), row.get("clean", "")
    if not (clean and re.fullmatch(r"[0-9]{1,2}", label) and int(label) < 99):
        raise place.wrong(f"label {label!r} of {clean[:40]!r}", "expected a text and a number, 0 to 98")
    years = [f"{year:02d}" for year in range(100)]
    above = int(label) + 1
    template = re.sub(r"\d+", "{year}", re.sub(r"(?<=^The )\w+", "{thing}", clean))
    return {
        "clean": clean, "corrupted": row.get("corrupted", ""), "template": template,
        "answers": tuple(years[above:]), "wrongs": tuple(years[:above]),
    }  # fmt: skip


def _indirect_object(row: Mapping[str, str], place: _Line) -> Entry:
    """The answer is the one of two names that is not said again."""
    clean = row.get("clean", "")
    pair = TWO_NAMES.search(clean)
    names, rest = (pair.groups(), clean[pair.end() :]) if pair else ((), "")
    again = [name for name in names if re.search(rf"\b{name}\b", rest)]
    if len(again) != 1:
        raise place.wrong(repr(clean[:60]), "expected two names joined by 'and', one of which comes again")
    (answer,) = set(names) - set(again)
    template = clean
    for word, mask in ((names[0], "{A}"), (names[1], "{B}"), (again[0], "{S}")):
        template = re.sub(rf"\b{word}\b", mask, template, count=0 if mask == "{S}" else 1)
    for words, mask in MASKS:
        template = re.sub(words, mask, template)
    own = {"answer": continuing(clean, answer), "wrong": continuing(clean, again[0])}
    return {"clean": clean, "corrupted": row.get("corrupted", ""), "template": template} | own


def _inputs_and_outputs(text: str, where: str, template: str) -> Entries:
    """Sentences of one template, without a corrupted text."""
    expected = 'expected a list of {"input": ..., "output": ...}, all of them text'
    try:
        read: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no valid JSON ({error})", expected) from None
    if isinstance(read, dict):
        template, read = template or str(read.get("template", "")), read.get("examples")
    if not isinstance(read, list) or not all(map(_is_example, read)):
        raise InputError(f"{where}: {text.strip()[:40]!r}", expected)
    if template.count("{input}") != 1:
        raise InputError(
            f"{where}: inputs and outputs, and " + (f"the template {template!r}" if template else "no template"),
            "expected a sentence with {input} in it once, as in 'The capital of {input} is'",
            'give it as template, or in the file: {"template": ..., "examples": [...]}',
        )
    texts = [template.replace("{input}", example["input"]) for example in read]
    return [
        {"clean": text, "answer": continuing(text, example["output"]), "template": template}
        for text, example in zip(texts, read, strict=True)
    ]


def _is_example(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("input", "output"))
