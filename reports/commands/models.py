"""`interp models`: which models are known by name and which families are read; --evaluate and --check measure one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from interp.errors import CheckFailed, InputError
from reports.commands import output, work
from reports.commands.options import DEFAULT_MODEL, Debug, Device, DtypeOption, Model, Quiet
from reports.commands.output import hint

if TYPE_CHECKING:
    from interp.models.identities import Identity

EXAMPLE = "Example: interp models --check ./my-llama"
VERDICTS = ("holds", "FAILS")
LONGEST = 600
"""Tokens that --check runs on at most; windows longer than this are not tried out."""
CHECK_TEXT = "When Mary and John went to the store, John gave a drink to Mary. "


def models(
    check: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this form in every version
        typer.Option(
            metavar="<name>", help="Check that a model was read right: identities of its parts, and transformers."
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Measure a model: bits per byte, induction and previous-token heads.")
    ] = False,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    dtype: DtypeOption = "float32",
    text: Annotated[
        Optional[Path], typer.Option(metavar="<path>", help="With --evaluate: text to score; by default what ships.")  # noqa: UP045
    ] = None,
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="Of the list, or of --check.")] = "table",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """List the models known by name and the families that are read; --check and --evaluate measure one."""
    if check is not None and evaluate:
        raise InputError("both --check and --evaluate", "expected one of the two")
    if check is not None:
        return _check(check, device, dtype, format, quiet)
    if evaluate:
        from interp.text.documents import read_documents
        from interp.training.evaluation import SAMPLE, describe

        with output.progress(quiet) as step:
            loaded = work.load_model(model, device, dtype)
            hint(quiet, f"measuring {loaded.source}, about a minute")
            step("measuring", 0, 1)
            found = list(describe(loaded, read_documents(text or SAMPLE)))
        print(*found, sep="\n")
        return
    from interp.loading.families import FAMILIES

    _show(list(known_models()), format)
    if format == "table":
        titles = ", ".join(dict.fromkeys(family.title for name, family in FAMILIES.items() if name != "interp"))
        hint(quiet, f"--model also takes a directory in Hugging Face layout, or a hub id, of these families: {titles}.")
        hint(quiet, "interp models --check MODEL tells whether one of them was read right.")


def _show(rows: list[dict[str, Any]], format: Literal["table", "json", "csv"], title: str = "") -> None:
    import pandas as pd

    frame = pd.DataFrame(rows)
    if format == "table":
        from analyses.shared.panels import Table
        from reports.terminal import show

        show(Table(key="models", title=title, frame=frame))
        return
    from reports.running.report import csv_text, records

    print(records(frame) if format == "json" else output.shown(csv_text(frame).rstrip("\n")))


def _check(name: str, device: str, dtype: Any, format: Literal["table", "json", "csv"], quiet: bool) -> None:
    """Raises CheckFailed when an identity does not hold."""
    with output.progress(quiet) as step:
        step("loading the model", 0, 2)
        from interp.models.identities import identities

        loaded = work.load_model(name, device, dtype)
        step("checking", 1, 2)
        found = identities(loaded, _tokens(loaded))
    _show(verdicts(found), format)
    failed = [one.name for one in found if not one.holds]
    if not any("transformers" in one.name for one in found):
        hint(quiet, "not compared with transformers, which is not installed or does not read this directory")
    if failed:
        raise CheckFailed(f"{name}: {'; '.join(failed)}", "expected every identity to hold: the model was read wrong")


def verdicts(found: "Sequence[Identity]") -> list[dict[str, Any]]:
    """One row an identity."""
    return [
        {
            "identity": one.name,
            "largest error": one.error,
            "limit": one.limit,
            "verdict": VERDICTS[not one.holds],
        }
        for one in found
    ]


def _tokens(model: Any) -> Any:
    """[1 pos] of a text, if the model reads any, that is longer than its shortest window where that is not too long."""
    import torch

    windows = [window for window in model.config.windows or () if window is not None]
    length = min(max([32, *(window + 8 for window in windows[:1])]), LONGEST, model.config.n_ctx)
    if model.tokenizer is None:
        return torch.randint(0, model.config.d_vocab, (1, length), generator=torch.Generator().manual_seed(0)).to(
            model.device
        )
    return model.to_tokens(CHECK_TEXT * (length // 8 + 1))[:, :length]


def known_models() -> Iterator[dict[str, Any]]:
    """One row a model: the bundled ones, then the published sizes."""
    import json

    from interp.loading.families import family_of
    from interp.loading.sources import BUNDLED, bundled_models
    from interp.models.config import PRESETS, UNPUBLISHED
    from interp.models.encoder_config import encoder_decoder_from_hf

    known: dict[str, tuple[str, Any]] = {}
    for name in bundled_models():
        path = BUNDLED / name / "config.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("model_type") == "marian":
            known[name] = ("bundled", encoder_decoder_from_hf(data, {}, str(path)))
        else:
            known[name] = ("bundled", family_of(data, str(path)).read(data, str(path)))
    known |= {name: ("shape only" if name in UNPUBLISHED else "hub", config) for name, config in PRESETS.items()}
    for name, (where, c) in known.items():
        yield {
            "name": name, "from": where, "layers": _layers(c), "heads": c.n_heads, "kv": c.n_kv_heads,
            "width": c.d_model, "context": c.n_ctx, "vocabulary": c.d_vocab, "parameters": _parameters(c),
        }  # fmt: skip


def _layers(config: Any) -> int | str:
    """Such as 12, or "6 + 6" for encoder and decoder."""
    pairs = hasattr(config, "n_decoder_layers")
    return f"{config.n_encoder_layers} + {config.n_decoder_layers}" if pairs else config.n_layers


def _parameters(config: Any) -> int:
    import torch

    from interp.models.encoder_decoder import HookedEncoderDecoder
    from interp.models.gpt import HookedGPT

    with torch.device("meta"):
        kind = HookedEncoderDecoder if hasattr(config, "n_decoder_layers") else HookedGPT
        return sum(weight.numel() for weight in kind(config).parameters())
