"""Prompt sets from files, of whatever kind they are: told by what stands in them.

JSON lines of prompts; JSON lines of sentence beginnings whose subjects differ in number (Linzen et al. 2016); a JSON
list of inputs with outputs, which a template makes sentences of (Todd et al. 2024, "Function Vectors"); a table of
prompts, also of the indirect object task with the answers to be told from the sentence (Wang et al. 2022).
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analyses.shared.prompts import Prompt, PromptSet
from interp.errors import InputError

FIELDS = tuple(Prompt.__dataclass_fields__)
EXPECTED = 'expected {"clean": ..., "corrupted": ..., "answer": ..., "wrong": ...}'
AGREEMENT = {"clean_prefix": "clean", "patch_prefix": "corrupted", "clean_answer": "answer", "patch_answer": "wrong"}
"""Their names of our fields."""
EXAMPLES = re.compile(r'"examples"\s*:\s*\[')
"""In no JSON lines of prompts, for all in them is text."""
TWO_NAMES = re.compile(r"\b([A-Z]\w*) and ([A-Z]\w*)\b")
MASKS = ((r"(?<= the )\w+", "{place}"), (r"(?<= a )\w+(?= to| at)|(?<= an )\w+(?= to| at)", "{thing}"))
"""Words of an indirect object sentence that its template leaves open."""


def parse_prompts(lines: str | Iterable[str], *, where: str = "prompts", template: str = "") -> PromptSet:
    """A prompt set from the text of a file.

    Read are, told by their content: JSON lines of objects with clean and, where known, corrupted, answer, wrong,
    template; JSON lines with clean_prefix, patch_prefix, clean_answer, patch_answer, case; tables (CSV) with clean,
    corrupted, answer, wrong, or with clean, corrupted, corrupted_hard, whose answer is the name that is not repeated; a
    JSON list of objects with input and output, alone or as "examples" beside a "template" with {input} in it.

    Args:
        lines: the text of a file, or its lines; empty lines are skipped.
        where: the name of the file, for messages.
        template: sentence for inputs and outputs, as in "The capital of {input} is". What answers gets a space in front
            where the sentence ends in none; corrupted texts are chosen by `fitting`, which knows the tokens.

    Raises InputError, with the number of the line, for anything else.
    """
    text = lines if isinstance(lines, str) else "\n".join(line.rstrip("\n") for line in lines)
    start = text.lstrip("\ufeff \t\r\n")
    head = start.partition("\n")[0]
    if start.startswith("[") or EXAMPLES.search(start):
        return _inputs_and_outputs(start, where, template)
    if template:
        raise InputError(
            f"a template for {where}", 'expected a JSON list of {"input": ..., "output": ...}', "leave it out"
        )
    table = not start.startswith("{") and "clean" in next(csv.reader([head[:1000].strip()]), [])
    prompts = _from_table(start, where) if table else _from_json_lines(text, where)
    if not prompts:
        raise InputError(f"{where}: no prompts", "expected one JSON object a line, or a table with a column clean")
    return PromptSet(prompts=tuple(prompts), note=f"{len(prompts)} prompts from {where}.")


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


def _from_json_lines(text: str, where: str) -> list[Prompt]:
    numbered = enumerate(text.split("\n"), start=1)
    return [_from_json(line, _Line(where, number)) for number, line in numbered if line.strip()]


def _from_json(line: str, place: _Line) -> Prompt:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise place.wrong(f"no valid JSON ({error})", EXPECTED) from None
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise place.wrong(line.strip()[:60], EXPECTED + ", all of them text")
    if AGREEMENT.keys() <= entry.keys():
        entry = {ours: entry[theirs] for theirs, ours in AGREEMENT.items()} | {"template": entry.get("case", "")}
    return _prompt(entry, place)


def _prompt(entry: Mapping[str, str], place: _Line) -> Prompt:
    unknown = [name for name in entry if name not in FIELDS]
    if unknown:
        raise place.wrong(f"unknown entry {unknown[0]!r}", f"expected some of {', '.join(FIELDS)}")
    if not entry.get("clean"):
        raise place.wrong("no clean text", EXPECTED)
    return Prompt(**entry)


def _from_table(text: str, where: str) -> list[Prompt]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = set(reader.fieldnames or ())
    read: Callable[[Mapping[str, str], _Line], Prompt] = _prompt
    if "corrupted_hard" in columns:
        read = _indirect_object
    elif "label" in columns:
        raise InputError(
            f"{where}: answers are all years above a label",
            "expected one right and one wrong token a prompt",
            "give answer and wrong columns, or JSON lines: clean, corrupted, answer, wrong",
        )
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


def _indirect_object(row: Mapping[str, str], place: _Line) -> Prompt:
    """The answer is the one of two names that is not said again."""
    clean, pair = row["clean"], TWO_NAMES.search(row["clean"])
    names = pair.groups() if pair else ()
    again = [name for name in names if re.search(rf"\b{name}\b", clean[pair.end() :] if pair else "")]
    if len(again) != 1:
        raise place.wrong(clean[:60], "expected two names joined by 'and', one of which comes again")
    (answer,) = set(names) - set(again)
    template = clean
    for word, mask in ((names[0], "{A}"), (names[1], "{B}"), (again[0], "{S}")):
        template = re.sub(rf"\b{word}\b", mask, template, count=0 if mask == "{S}" else 1)
    for words, mask in MASKS:
        template = re.sub(words, mask, template)
    return Prompt(
        clean=clean, corrupted=row.get("corrupted", ""), answer=continuing(clean, answer), wrong=continuing(clean, again[0]),
        template=template,
    )  # fmt: skip


def _inputs_and_outputs(text: str, where: str, template: str) -> PromptSet:
    """Sentences of one template; the corrupted text of each will be that of another input."""
    try:
        entries: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no valid JSON ({error})", 'expected a list of {"input": ..., "output": ...}') from None
    if isinstance(entries, dict):
        template, entries = template or str(entries.get("template", "")), entries.get("examples")
    good = isinstance(entries, list) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("input", "output"))
        for entry in entries
    )
    if not good or not entries:
        raise InputError(f"{where}: {text[:40]}", 'expected a list of {"input": ..., "output": ...}, all of them text')
    if template.count("{input}") != 1:
        raise InputError(
            f"{where}: inputs and outputs, and " + (f"the template {template!r}" if template else "no template"),
            "expected a sentence with {input} in it, as in 'The capital of {input} is'",
            'give it as template, or in the file: {"template": ..., "examples": [...]}',
        )
    blank = Prompt(clean="", template=template)
    prompts = []
    for entry in entries:
        clean = template.replace("{input}", entry["input"])
        prompts.append(replace(blank, clean=clean, answer=continuing(clean, entry["output"])))
    note = f"{len(prompts)} prompts from {where}, of the template {template!r}."
    return PromptSet(prompts=tuple(prompts), note=note, exchange=True)
