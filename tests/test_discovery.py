"""Analyses are found by their files alone, and their signatures become options."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from command_line import TEXT, add_analysis, interp, save

from interp.errors import InputError
from interp.models.gpt import HookedGPT
from reports.running import discovery

ROOT = Path(__file__).parent.parent
PATHS = [*(ROOT / "analyses").glob("*.py"), *(ROOT / "analyses" / "lessons").glob("*.py")]
FILES = {path.stem: path for path in PATHS if not path.name.startswith("_")}


@pytest.fixture(scope="module")
def toy(toy_gpt: HookedGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(toy_gpt, tmp_path_factory.mktemp("model") / "toy")


def test_every_file_is_an_analysis_and_nothing_else() -> None:
    found = discovery.discover()
    assert sorted(found) == sorted(FILES)
    assert {name: analysis.path for name, analysis in found.items()} == FILES


def test_analyses_come_in_reading_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"late": "place=90", "early": "place=10", "b": "", "a": "runs=True"}.items():
        (tmp_path / f"{name}.py").write_text(f'"""What?"""\n@analysis({text})\ndef {name}(model, tokens): ...')
    monkeypatch.setattr(discovery.package, "__path__", [str(tmp_path)])
    assert list(discovery.discover()) == ["early", "a", "b", "late"]


@pytest.mark.parametrize("name", FILES)
def test_help_is_the_first_line_of_the_docstring(name: str) -> None:
    doc = ast.get_docstring(ast.parse(FILES[name].read_text(encoding="utf-8")))
    assert doc
    analysis = discovery.discover()[name]
    assert analysis.doc == doc
    assert analysis.help == doc.splitlines()[0]


def test_listing_imports_nothing_heavy() -> None:
    """Names, help and options of all analyses, without importing one of them; a function itself is the control."""
    code = (
        "import sys; from reports.running.discovery import discover\n"
        "assert all(a.help and a.command and a.options() is not None for a in discover().values())\n"
        "slow = {'torch', 'numpy', 'pandas', 'matplotlib', 'rich'}\n"
        "heavy = [m for m in sys.modules if m.partition('.')[0] in slow]\n"
        "light = ('analyses.shared', 'analyses.shared.declared')\n"
        "heavy += [m for m in sys.modules if m.startswith('analyses.') and m not in light]\n"
        "print(heavy)\n"
        "next(iter(discover().values())).function(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["[]", "True"]


def test_analyses_import_no_statistics_before_they_need_them() -> None:
    """scipy.stats takes half a second: `import scipy` fetches it when one of its laws is asked for (control)."""
    code = (
        "import sys, scipy, analyses\n"
        "for name in dir(analyses): getattr(analyses, name)\n"
        "print('analyses.weight_statistics' in sys.modules, 'scipy.stats' in sys.modules)\n"
        "scipy.stats.norm; print('scipy.stats' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_the_table_of_options_says_what_the_signatures_say() -> None:
    """Else: `python -m reports.running.discovery` writes it anew."""
    assert json.loads(discovery.TABLE.read_text()) == json.loads(json.dumps(discovery.table()))
    for analysis in discovery.discover().values():
        assert analysis._written is not None
        told, meant = analysis.options(), discovery.keyword_options(analysis.name, analysis.function(), skip=2)
        for one, other in zip(told, meant, strict=True):
            assert (one.load is None) == (other.load is None)
            assert {**vars(one), "load": None} == {**vars(other), "load": None}
            if analysis.name == "compare" and one.load is not None and other.load is not None:
                assert one.load("tiny").config == other.load("tiny").config


def test_a_file_that_changed_since_is_imported(tmp_path, monkeypatch) -> None:
    """An edited analysis has the options of its signature, not those of the table."""
    add_analysis(monkeypatch, tmp_path, "made_up", "return MadeUp({})", 'more: Annotated[int, "how many"] = 3')
    found = discovery.find("made-up")
    stale = {"made-up": {"file": "0" * 16, "declared": {}, "prompts": True, "config": True, "options": []}}
    monkeypatch.setattr(discovery, "_table", lambda: stale)
    assert [option.name for option in found.options()] == ["more"]
    monkeypatch.setattr(
        discovery, "_table", lambda: {"made-up": {**stale["made-up"], "file": discovery._digest(found._text)}}
    )
    assert discovery.find("made-up").options() == []


@pytest.mark.parametrize("name", ["logit-lens", "ablation", "probing"])
def test_help_of_an_analysis_needs_no_torch(name) -> None:
    code = f"import sys; sys.argv = ['interp', {name!r}, '--help']\nfrom reports.cli import app\ntry: app()\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--seed" in done.stdout
    assert done.stderr.split() == ["False"]


def test_names_may_be_written_either_way() -> None:
    assert discovery.find("attention-patterns") == discovery.find("attention_patterns")
    with pytest.raises(InputError, match="nearest: attention-patterns"):
        discovery.find("atention_paterns")
    with pytest.raises(InputError, match="expected one of: "):
        discovery.find("qqqqqqqq")


def made(hint: Any, default: Any = None) -> discovery.Option:
    def analysis(model: object, tokens: object, *, option: hint = default) -> None: ...

    import inspect

    return discovery._option("analysis", inspect.signature(analysis).parameters["option"], hint)


@pytest.mark.parametrize(
    ("hint", "kind", "many", "optional"),
    [
        (Annotated[int, "help"], int, False, False),
        (Annotated[float | None, "help"], float, False, True),
        (Annotated[Literal["zero", "mean"], "help"], Literal["zero", "mean"], False, False),
        (Annotated[tuple[int, ...], "help"], int, True, False),
        (Annotated[tuple[str, ...] | None, "help"], str, True, True),
    ],
)
def test_types_the_contract_allows(hint: Any, kind: Any, many: bool, optional: bool) -> None:
    option = made(hint)
    assert (option.type, option.many, option.optional, option.help) == (kind, many, optional, "help")


@pytest.mark.parametrize(
    "hint", [int, Annotated[dict[str, int], "help"], Annotated[list[int], "help"], Annotated[object, "h"]]
)
def test_types_the_contract_forbids(hint: Any) -> None:
    with pytest.raises(TypeError, match="analysis: option option"):
        made(hint)


SIGNATURE = (
    'k: Annotated[int, "how many"] = 3, way: Annotated[Literal["zero", "mean"], "which"] = "zero", '
    'layers: Annotated[tuple[int, ...], "where"] = (0, 1), words: Annotated[tuple[str, ...] | None, "what"] = None, '
    'fast: Annotated[bool, "hurry"] = False, share: Annotated[float | None, "part"] = None, '
    'dtype: Annotated[str, "shares a name with ours"] = "own"'
)
DEFAULTS = {"k": 3, "way": "zero", "layers": (0, 1), "words": None, "fast": False, "share": None, "dtype": "own"}


@pytest.mark.parametrize(
    ("typed", "changed"),
    [
        ((), {}),
        (("--k", "5", "--way", "mean"), {"k": 5, "way": "mean"}),
        (("--layers", "2,0"), {"layers": (2, 0)}),
        (("--words", " Mary", "--words", "a,b"), {"words": (" Mary", "a,b")}),
        (("--fast", "--share", ".5"), {"fast": True, "share": 0.5}),
        (("--made-up-dtype", "mine", "--dtype", "float64"), {"dtype": "mine"}),
    ],
)
def test_one_new_file_is_a_command(
    typed: tuple[str, ...],
    changed: dict[str, object],
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is typed arrives in the function, with its type; the function says what it got."""
    names = ", ".join(f"{name}={name}" for name in DEFAULTS)
    add_analysis(monkeypatch, tmp_path / "more", "made_up", f"return MadeUp(dict({names}))", SIGNATURE)
    assert "made-up" in interp(capsys, "--help").out
    done = interp(capsys, "made-up", TEXT, "--model", toy, "--format", "json", "--quiet", *typed)
    assert done.code == 0, done.err
    import json

    (row,) = json.loads(done.out)
    assert row == {name: str(value) for name, value in (DEFAULTS | changed).items()}


def test_help_shows_every_option_with_help_and_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_analysis(monkeypatch, tmp_path / "more", "made_up", "return MadeUp({})", SIGNATURE)
    out = interp(capsys, "made-up", "--help").out
    words = " ".join(out.split())
    for line in ("--k <int> how many [default: 3]", "--way <zero|mean> which [default: zero]", "[default: 0,1]",
                 "--fast / --no-fast hurry [default: no-fast]", "--made-up-dtype", "(may be repeated)"):  # fmt: skip
        assert line in words
    assert 'Example: interp made-up "' in out
    assert words.index("--k") < words.index("--model")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("interp ablation --kinds zero,mean_o", ["zero,mean_over_texts"]),
        ("interp logit-lens --model ti", ["tiny"]),
        ("interp logit-lens --model ./too", ["./toolbox"]),
        ("interp report --analyses logit-lens,abl", ["logit-lens,ablation"]),
    ],
)
def test_values_complete_in_the_shell(tmp_path, typed, offered) -> None:
    (tmp_path / "toolbox").mkdir()
    typing = {"_INTERP_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    command = [sys.executable, "-c", "from reports.cli import main; main()"]
    environment = os.environ | typing | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == offered, done.stderr
