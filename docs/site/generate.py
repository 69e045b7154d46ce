"""Writes the pages that are made from code, docs/commands.md and docs/families.md: `make pages`.

`tests/test_docs_site.py` compares the files with what the code says. Needs the `test` extra (transformers' configs).
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
NOTE = "<!-- Made from the code by `make pages`; edit the code. -->"
EXTRA = re.compile(r"\s*\[((?:default|required|x[<>=]|\d+[<>]=?x)[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*)\]\s*$")


def commands() -> str:
    """All commands, each with what its `--help` says."""
    import typer

    from reports.cli import app

    os.environ["COLUMNS"] = "200"
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, info_name="interp")
    names = group.list_commands(context)
    lines = [
        "# Commands", "", NOTE, "",
        f"`interp` has {len(names)} commands. `interp COMMAND --help` shows the same as this page.", "",
        "| command | what for |", "|---|---|",
    ]  # fmt: skip
    found = [(name, group.get_command(context, name)) for name in names]
    lines += [f"| [`{name}`](#{name}) | {_cell((one.help or '').partition(chr(10))[0])} |" for name, one in found]
    for name, one in found:
        lines += ["", *_command(name, one, typer)]
        if hasattr(one, "list_commands"):  # studies
            inner = typer.Context(one, info_name=name)
            for below in one.list_commands(inner):
                lines += ["", *_command(f"{name} {below}", one.get_command(inner, below), typer)]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any, typer: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=name)
    pieces = " ".join(command.collect_usage_pieces(context))
    yield from (f"## {name}", "", f"`{name} {pieces}`", "")
    for paragraph in (command.help or "").strip().split("\n\n"):
        yield from (" ".join(paragraph.split()), "")
    rows = list(_options(command, context))
    if rows:
        yield from ("| option | what it does | value | default |", "|---|---|---|---|", *rows)
    example = (command.epilog or "").partition("Example: ")[2]
    if example:
        yield from ("", f"For example: `{example}`")


def _options(command: Any, context: Any) -> Iterator[str]:
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            yield f"| `{parameter.metavar}` | {_cell(parameter.help or '')} | | |"
            continue
        record = parameter.get_help_record(context)
        if record is None or parameter.name == "help":
            continue
        names, help = record
        flags = ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
        value = re.sub(r"^(?:-{1,2}[\w-]+(?:, | / )?)+", "", names).strip()
        default = ""
        while found := EXTRA.search(help):
            help, told = help[: found.start()], found[1]
            default = told.partition("; ")[0].removeprefix("default: ") if "default" in told else default or told
        said = {
            "value": f"`{_cell(value)}`" if value else "",
            "default": f"`{_cell(default)}`" if default not in ("", "required") else default,
        }
        yield f"| {flags} | {_cell(help)} | {said['value']} | {said['default']} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def points() -> Mapping[str, tuple[str, list[tuple[Any, set[str]]]]]:
    """Family -> its `model_type`, and of each shape in tests/families.py the config and names of points."""
    import transformers
    from families import CASES

    from interp import HookedGPT
    from interp.loading.families import family_of

    found: dict[str, tuple[str, list[tuple[Any, set[str]]]]] = {}
    for case in CASES:
        data = transformers.AutoConfig.for_model(case.model_type, **case.config).to_dict()
        data = data.get("text_config", data)
        family = family_of(data, case.name)
        model = HookedGPT(family.read(data, case.name))
        names = {re.sub(r"blocks\.\d+\.", "blocks.{l}.", name) for name in model.hook_points}
        found.setdefault(family.title, (case.model_type, []))[1].append((model.config, names))
    return found


def families() -> str:
    """Families of decoders: what they are made of, their hook points, and which analyses each kind of model has."""
    from interp.loading.families import NOT_SERVED

    shapes = points()
    every = [names for _, cases in shapes.values() for _, names in cases]
    common = set.intersection(*every)
    lines = [
        "# Model families", "", NOTE, "",
        "A family is read from the `model_type` of its `config.json`. Each is built here in the shapes of "
        "`tests/families.py`, and this page says what those models have. `interp models --check MODEL` checks one "
        "model. Names of points: [what each holds](activations.md).", "",
        "## What they are made of", "",
        "| family | `model_type` | positions | norms | non-linearity | gated MLP | blocks | fewer key-value heads |"
        " windows | soft caps |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for title, (kind, cases) in shapes.items():
        lines.append(f"| {title} | `{kind}` | {' | '.join(_parts([config for config, _ in cases]))} |")
    lines += ["", "Yes, and some, speak of the shapes tried; the config of a model decides.", "", "## Hook points", "",
              "Every decoder here has these:", "", _listed(common), "",
              "Some have these too:", "", "| point | families |", "|---|---|"]  # fmt: skip
    for point in sorted(set().union(*every) - common):
        there = {title: [point in names for _, names in cases] for title, (_, cases) in shapes.items()}
        some = [f"{title} (some)" for title, found in there.items() if any(found) and not all(found)]
        having, lacking = (
            [title for title, found in there.items() if all(x is y for x in found)] for y in (True, False)
        )
        said = ["all but " + ", ".join(lacking)] if len(having) > len(lacking) and not some else having + some
        lines.append(f"| `{point}` | {', '.join(said)} |")
    lines += ["", "## Analyses", "", "An analysis asks for parts, never for a family. A plain report leaves out what a "
              "model has not the parts for, and says why. A translation model is an encoder-decoder.", "",
              "| analysis | decoder | translation model | encoder |", "|---|---|---|---|"]  # fmt: skip
    lines += _analyses()
    lines += ["", "## Refused by name", "", "| what is missing here | `model_type` |", "|---|---|"]
    lines += [f"| {what} | {', '.join(f'`{one}`' for one in kinds.split())} |" for what, kinds in NOT_SERVED.items()]
    return "\n".join(lines) + "\n"


def _parts(configs: list[Any]) -> Iterator[str]:
    def some(values: list[bool]) -> str:
        return "yes" if all(values) else "some" if any(values) else ""

    def words(values: list[Any]) -> str:
        return " or ".join(dict.fromkeys(str(value) for value in values))

    yield words([c.positions if c.positions == "learned" or not c.rotary_dim or c.rotary_dim == c.d_head
                 else "rotary, part of a head" for c in configs])  # fmt: skip
    place = {"pre": "before", "post": "after", "both": "before and after"}
    yield words([f"{c.norm}, {place[c.norm_place]}" + (", queries and keys" if c.qk_norm else "") for c in configs])
    yield words([c.act_fn for c in configs])
    yield some([c.gated for c in configs])
    yield words(["parallel" if c.parallel else "sequential" for c in configs])
    yield some([c.n_kv_heads != c.n_heads for c in configs])
    yield some([any(window is not None for window in c.windows or ()) for c in configs])
    yield some([bool(c.attn_softcap or c.logit_softcap) for c in configs])


def _listed(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _analyses() -> Iterator[str]:
    from interp import HookedEncoder, HookedEncoderDecoder
    from reports.running.discovery import discover

    def served(one: Any, kind: type) -> bool:
        return bool(one.serves(kind.__new__(kind)))  # only its type is asked

    for one in discover().values():
        if not one.module.startswith("analyses."):
            continue
        needs = ", ".join(dict.fromkeys(one.needs_in_report))
        place = "" if one.in_report else "; a command, not in a plain report"
        decoder = (f"needs: {needs}" if needs else "any") + place
        others = ["yes" if served(one, kind) else "" for kind in (HookedEncoderDecoder, HookedEncoder)]
        yield f"| [`{one.command}`](commands.md#{one.command}) | {decoder} | {others[0]} | {others[1]} |"


PAGES = {"commands.md": commands, "families.md": families}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
