"""An analysis that lies in somebody else's package: a command, a section of a report, and held to the same contract."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "your_own_analysis.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page's example, installed with pip as a package of its own; the environment that has it."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "my_package").mkdir()
    (source / "my_package" / "__init__.py").touch()
    (source / "my_package" / "longest.py").write_text(BLOCKS[0])
    entry = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert entry
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "my-package"\nversion = "1"\n{entry[1]}'
        'absent = "my_package.nowhere:absent"\nablation = "my_package.longest:ablation"\n'
        '[tool.setuptools]\npackages = ["my_package"]\n'
    )
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True, timeout=120)
    return os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def interp(package: dict[str, str], folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interp", *args]
    return subprocess.run(command, cwd=folder, env=package, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_it_is_a_command_and_a_section(package: dict[str, str], tmp_path: Path) -> None:
    """One that is not there, or has the name of one of ours, changes nothing for the others."""
    listed = interp(package, tmp_path, "--help")
    assert re.search(r"longest-tokens +Which tokens are written with the most letters\?", listed.stdout), listed.stderr
    assert "absent" not in listed.stdout
    told = interp(package, tmp_path, "longest-tokens", "--help")
    assert "how many are listed" in told.stdout
    table = interp(package, tmp_path, "longest-tokens", "a committee of 3", "--top", "1", "--format", "csv", "--quiet")
    assert table.stdout.splitlines()[0] == '"token","letters"', table.stderr
    assert len(table.stdout.splitlines()) == 2
    args = ("a committee of 3", "--analyses", "next-token,longest-tokens", "--out", "r.html", "--quiet")
    assert interp(package, tmp_path, "report", *args).returncode == 0
    assert 'id="longest_tokens-longest"' in (tmp_path / "r.html").read_text()
    assert interp(package, tmp_path, "ablation", "--help").stdout.count("--kinds") == 1  # ours
    without = interp(os.environ | {"PYTHONPATH": str(ROOT)}, tmp_path, "longest-tokens", "x")
    assert without.returncode == 2
    assert "no command is called 'longest-tokens'" in without.stderr


@pytest.mark.slow
def test_its_page_is_made_again_and_checked(package: dict[str, str], tmp_path: Path) -> None:
    made = interp(package, tmp_path, "longest-tokens", "a committee of 3", "--out", "one.html", "--quiet")
    assert made.returncode == 0, made.stderr
    again = interp(package, tmp_path, "rerun", "one.html", "--check")
    assert again.returncode == 0, again.stderr


def test_the_page_runs() -> None:
    """The example in a report, and held to the contract; without its help for an option, it is refused."""
    import types

    import analyses
    from interp.errors import CheckFailed

    module = types.ModuleType("longest_example")
    sys.modules["longest_example"] = module
    try:
        for code in BLOCKS:
            exec(compile(code, "docs/your_own_analysis.md", "exec"), vars(module))
        assert "longest_tokens-longest" in module.page
        exec(compile(BLOCKS[0].replace('Annotated[int, "how many are listed"]', "int"), "page", "exec"), vars(module))
        with pytest.raises(CheckFailed, match="option top has no help"):
            analyses.check(module.longest_tokens)
    finally:
        del sys.modules["longest_example"]
