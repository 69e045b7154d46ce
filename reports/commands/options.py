"""What commands share: the options that many of them have, each written once."""

import inspect
from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

from reports.commands import completion

DEFAULT_MODEL = "tiny"
DEFAULT_TEXT = (
    "Sir Harold Whitcombe was born in Leeds. In 1874 Harold Whitcombe moved to London, where Harold Whitcombe "
    "became a professor of history."
)
"""A name comes back twice, so that heads which copy have something to copy."""

COMMON = {"file", "lines", "tokens", "ids", "model", "device", "dtype", "format", "out", "open"} | {
    "force", "quiet", "debug", "help",
}  # fmt: skip
"""Options that commands share."""
Format = Literal["table", "json", "csv", "html"]
Dtype = Literal["float32", "float64", "bfloat16", "float16", "auto"]

Texts = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this form in every version
    typer.Argument(metavar="TEXT", help="One text or several; without any, a short biography.", show_default=False),
]
TextsOrPrompts = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="TEXT", help="One text or several; without any, prompts are made.", show_default=False),
]
File = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--file", metavar="<path>", help="Read the text from a file; - is stdin."),
]
ByLine = Annotated[bool, typer.Option("--lines", help="With --file: each line is a text of its own.")]
Ids = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--tokens", metavar="<ids>", help="Instead of a text: ids or symbols such as '3 1 4'; a .npy or .jsonl of rows."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="<name>",
        help="A bundled name, a directory, a file (.gguf, .bin, .pt), or a hub id; families: interp models.",
        autocompletion=completion.models,
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="<name>", help="auto, cpu, cuda, cuda:N or mps.")]
DtypeOption = Annotated[
    Dtype, typer.Option("--dtype", help="What the weights are converted to; auto keeps what the files have.")
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="<path>", help="Write to this file.")]  # noqa: UP045
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no hints.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _parameter(name: str, kind: type, metavar: str, help: str) -> inspect.Parameter:
    """An option that some analyses have beside their own."""
    told = Annotated[Optional[kind], typer.Option(metavar=metavar, help=help)]  # type: ignore[valid-type]  # noqa: UP045
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=told)


PROMPTS = _parameter(
    "prompts",
    Path,
    "<path>",
    "Instead of a text: JSON lines with clean, corrupted, answer, wrong, or a table (docs/circuits.md).",
)
TEMPLATE = _parameter(
    "template", str, "TEXT", "With --prompts of inputs and outputs: the sentence, as in 'The capital of {input} is'."
)
SAVE = _parameter("save", Path, "<path>", "Write what was found to this file too, for other programs and for --from.")
RAY = _parameter("ray", str, "<address>", "Share the texts out on a Ray cluster: local, auto, or host:port.")
RESUME = _parameter(
    "resume", Path, "<folder>", "Keep what is finished here; the same command goes on with it after a stop."
)


def shared_options(
    texts: Texts = None,
    file: File = None,
    lines: ByLine = False,
    tokens: Ids = None,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    format: Annotated[
        Optional[Format], typer.Option("--format", help="Of the output; told from --out if not given, else table.")  # noqa: UP045
    ] = None,
    out: Out = None,
    open: Open = False,
    force: Force = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The parameters of every analysis command; only its signature is used."""


def flag(name: str) -> str:
    return "--" + name.strip("_").replace("_", "-")
