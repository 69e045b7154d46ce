"""What a release is checked with, by one command: `python tests/release.py [--python python3.12] [--out FOLDER]`.

It builds the source archive and the wheel from a copy of the tree, checks both (`twine check --strict`), looks at their
contents, installs the wheel into an empty environment and runs the first commands there. Needs `build` and `twine`.
`--oldest` installs the floors that pyproject.toml names in place of the newest dependencies.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHIPPED = (
    "interp/py.typed", "interp/__init__.pyi", "analyses/__init__.pyi", "reports/__init__.pyi",
    "interp/bundled/tiny/model.safetensors", "interp/bundled/fr-en/model.safetensors",
    "reports/page/templates/page.html", "reports/page/static/page.js", "reports/running/options.json",
)  # fmt: skip
TEXT = "Mary met John, and John thanked Mary"


def run(*command: object, cwd: Path | None = None) -> str:
    """What it printed. A command that fails ends the release."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def build(out: Path) -> tuple[Path, Path]:
    """Source archive and wheel, from a copy: a build leaves files in its tree."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        left_out = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
        shutil.copytree(ROOT, source, ignore=left_out)
        run(sys.executable, "-m", "build", "--outdir", out, source)
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def look(sdist: Path, wheel: Path) -> None:
    """Ends the release where something that is needed is missing."""
    run(sys.executable, "-m", "twine", "check", "--strict", sdist, wheel)
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as source:
        inside = {wheel: set(archive.namelist()), sdist: {name.partition("/")[2] for name in source.getnames()}}
    for file, names in inside.items():
        missing = [name for name in SHIPPED if name not in names]
        if missing or not any(name.endswith("LICENSE") for name in names):
            sys.exit(f"{file.name} lacks {', '.join(missing) or 'LICENSE'}")
        print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB, {len(names)} entries")


def floors() -> list[str]:
    """The oldest dependencies that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.sub(r">=(.*)", r"==\1", one) for one in project["dependencies"]]


def first_commands(interp: Path, folder: Path) -> None:
    """What somebody types first; their output is told."""
    print(run(interp, "--version", cwd=folder).rstrip())
    rows = json.loads(run(interp, "logit-lens", TEXT, "--format", "json", "--quiet", cwd=folder))
    final = [row for row in rows if row["layer"] == max(other["layer"] for other in rows)]
    print(f"logit-lens: {len(rows)} rows, mean entropy at the end {sum(r['entropy'] for r in final) / len(final):.6f}")
    run(interp, "report", TEXT, "--out", "page.html", "--quiet", cwd=folder)
    print(f"report: {(folder / 'page.html').stat().st_size / 1e6:.2f} MB")
    print(run(interp, "rerun", "page.html", "--check", "--quiet", cwd=folder).rstrip().splitlines()[-1])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--python", default=sys.executable, help="of the empty environment")
    options.add_argument("--oldest", action="store_true", help="install the floors of the dependencies")
    options.add_argument("--out", type=Path, help="keep the two archives in this folder")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = (given.out or folder / "dist").absolute()
        sdist, wheel = build(out)
        look(sdist, wheel)
        environment = folder / "environment"
        run(given.python, "-m", "venv", environment)
        pip = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
        run(*pip, *(floors() if given.oldest else ()))
        first_commands(environment / "bin" / "interp", folder)


if __name__ == "__main__":
    main()
