"""What a command prints as JSON fits the schema that `interp schema` gives, and a changed document does not.

And every exit code is met by a process that ends with it.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from command_line import TEXT, interp
from shapes import toy

from interp.text.tokenizer import Tokenizer
from reports.commands import errors, schema, work
from reports.running.discovery import discover

ROOT = Path(__file__).parent.parent
QUICK = ("surprise", "logit-lens", "direct-logit-attribution", "architecture")
NO_ROWS = {"tuned-lens", "probing"}
"""The text of the test is too short for them."""
WITHOUT = {"compare", "markov-chain"}
"""Need more than a model and a text."""


def validator(command: str) -> jsonschema.Draft202012Validator:
    found = schema.of_command(command)
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def without(document: Any) -> Iterator[tuple[str, Any]]:
    """The document without one key of its first row, and without one fact."""
    for path in ("row", "facts"):
        whole = copy.deepcopy(document)
        row = (whole["rows"] if isinstance(whole, dict) else whole)[0]
        place = row if path == "row" else whole
        for key in list(place) if isinstance(place, dict) else ():
            kept = place.pop(key)
            yield key, whole
            place[key] = kept


def holds_and_is_strict(command: str, tokenizer: Tokenizer) -> None:
    """On a model that the schema was not made from: what is printed fits; without a key, or of a wrong type, not."""
    fits = validator(command)
    result = discover()[command.replace("-", "_")].function()(toy("gpt2", tokenizer=tokenizer), TEXT)
    document = json.loads(work.as_json(work.plain(result)), parse_constant=refuse)
    fits.validate(document)
    rows = document["rows"] if isinstance(document, dict) else document
    if not rows:
        assert command in NO_ROWS
        return
    row = rows[0]
    for key, other in without(document):
        numbered = key[-1].isdigit() or "_probability" in key  # one of as many as an option says
        assert not fits.is_valid(other) or numbered, key
    for key in row:
        kept, row[key] = row[key], {"a": 1}
        assert not fits.is_valid(document) or (command, key) == ("verify", "agrees"), key  # never measured on tiny
        row[key] = kept
    assert fits.is_valid(document)


@pytest.mark.parametrize("command", QUICK)
def test_json_fits_its_schema(command: str, toy_tokenizer: Tokenizer) -> None:
    holds_and_is_strict(command, toy_tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({one.command for one in discover().values()} - {*QUICK, *WITHOUT}))
def test_all_json_fits_its_schema(command: str, toy_tokenizer: Tokenizer) -> None:
    holds_and_is_strict(command, toy_tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ("compare", TEXT, "--other", "tiny"),
        ("direct-logit-attribution", "Je suis étudiant.", "--model", "fr-en"),
        ("logit-lens", TEXT, "--top-k", 1),
        ("ablation", TEXT, "--kinds", "resample", "--metrics", "kl"),
        ("models",),
        ("models", "--check", "tiny"),
        ("extract", "--plan", "--names", "z"),
    ],
    ids=lambda args: "-".join(map(str, args[:1])),
)
def test_what_is_printed_fits(args: tuple[object, ...], capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, *args, "--format", "json", "--quiet")
    assert done.code == 0, done.err
    document = json.loads(done.out, parse_constant=refuse)
    fits = validator(str(args[0]))
    fits.validate(document)
    assert not fits.is_valid({"rows": document})


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "schema")
    assert set(done.out.split()) == {*schema.OTHERS, *(one.command for one in discover().values())}
    assert interp(capsys, "schema", "logit-lenz").code == errors.USAGE
    printed = json.loads(interp(capsys, "schema", "rerun").out)
    assert printed == schema.of_command("rerun")


def test_what_is_no_number_is_null() -> None:
    from analyses.surprise import surprise
    from interp.models.gpt import HookedGPT

    model = HookedGPT.from_pretrained("tiny")
    tokens = model.to_tokens(TEXT)
    bare = HookedGPT(model.config)
    found = work.plain(surprise(bare, tokens))
    assert found["by_frequency"] is None
    validator("surprise").validate(found)


# Exit codes.

RAISING = """
import os, signal, sys
from interp.errors import CheckFailed, MemoryLimitError
from reports.commands.errors import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may have it ignored
def run():
    {body}
sys.exit(guarded(run, []))
"""
CASES = {
    errors.DONE: "pass",
    errors.BUG: "1 / 0",
    errors.USAGE: "open('/dev/full', 'w').write('x' * 100_000)",
    errors.NOT_FOUND: "from interp.errors import NotFoundError; raise NotFoundError('no file')",
    errors.MEMORY: "raise MemoryLimitError('too much')",
    errors.CHECK_FAILED: "raise CheckFailed('it differs')",
    130: "os.kill(os.getpid(), signal.SIGINT)",
    errors.CLOSED_PIPE: "os.close(os.dup(1)); r, w = os.pipe(); os.dup2(w, 1); os.close(r); os.close(w); print('x')",
}


@pytest.mark.parametrize("code", errors.EXIT_CODES)
def test_every_exit_code_is_met(code: int) -> None:
    """Each cause in a process of its own; every code has one, and a message of at most three lines."""
    source = RAISING.format(body=CASES[code])
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) in ((0,) if code in (errors.DONE, errors.CLOSED_PIPE) else (1, 2, 3))


def test_commands_end_with_them(tmp_path: Path) -> None:
    def code(*args: str) -> int:
        return subprocess.run([sys.executable, "-m", "interp", *args], cwd=tmp_path, capture_output=True,
                              env={"PYTHONPATH": str(ROOT), "PATH": ""}).returncode  # fmt: skip

    assert code("schema") == errors.DONE
    assert code("logit-lens", "--nothing") == errors.USAGE
    assert code("logit-lens", "a text", "--file", "b.txt") == errors.USAGE
    assert code("logit-lens", "--file", "not-there.txt") == errors.NOT_FOUND


# docs/programs.md

PAGE = (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")


def test_the_page_lists_the_exit_codes() -> None:
    assert dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE, re.MULTILINE)) == {
        str(code): meaning for code, meaning in errors.EXIT_CODES.items()
    }


@pytest.mark.slow
def test_every_command_and_the_python_of_the_page_run(tmp_path: Path) -> None:
    commands = [line.partition("#")[0].strip() for line in re.findall(r"^ *(interp .*)$", PAGE, re.MULTILINE)]
    assert len(commands) >= 8
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in commands:
        typed = re.sub(r"^interp", f"{shlex.quote(sys.executable)} -m interp", command)
        done = subprocess.run(typed, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    run = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    trained, random = map(float, done.stdout.split())
    assert trained > random
