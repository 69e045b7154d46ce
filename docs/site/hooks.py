"""What the site has beyond the files in docs/: the API, a section a public name; notebooks with what they showed."""

import ast
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
FACES = {
    "interp": "Models, hooks, interventions, sweeps, activations on disk.",
    "analyses": "One question a function, and the kit for your own.",
    "analyses.probes": "Estimators that can be merged, the sweep over layers, erasure and steering.",
    "reports": "Pages, figures, terminal and notebook.",
}


def names(face: str) -> dict[str, str]:
    """Public name -> the module where it is written; as the face's stub, or else its `__init__`, imports it."""
    folder = ROOT / face.replace(".", "/")
    stub = folder / "__init__.pyi"
    tree = ast.parse((stub if stub.is_file() else folder / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    found = {alias.name: str(node.module) for node in imports for alias in node.names}
    return {name: home for name, home in sorted(found.items(), key=lambda one: one[0].lower()) if name[0] != "_"}


def api_page(face: str) -> str:
    """Markdown of one face: what mkdocstrings replaces by the docstring and signature of each name."""
    lines = [f"# `{face}`", "", FACES[face], ""]
    for name, home in names(face).items():
        module = ROOT / f"{home.replace('.', '/')}.py"
        tree = ast.parse(module.read_text(encoding="utf-8")) if module.is_file() else ast.Module([], [])
        kept = _question(tree, name, home)
        options = {"heading": f"{face}.{name}", "toc_label": name}
        if kept:  # an analysis: what its file says, then the function and its result
            about = ast.get_docstring(tree) or ""
            lines += [f"## {name}", "", *about.splitlines(), ""]
            for one in kept:
                lines += _block(f"{home}.{one}", {"heading_level": 3, "toc_label": one})
        else:
            lines += _block(f"{home}.{name}", options)
    return "\n".join(lines)


def _question(tree: ast.Module, name: str, home: str) -> list[str]:
    """The names in the file of an analysis that are documented; empty for what is none."""
    function = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name), None)
    marks = [] if function is None else [ast.unparse(one) for one in function.decorator_list]
    if not any(mark.startswith("analysis") for mark in marks) or home == "analyses.shared.capabilities":
        return []
    results = [
        n.name for n in tree.body
        if isinstance(n, ast.ClassDef) and any(ast.unparse(base).endswith("Result") for base in n.bases)
    ]  # fmt: skip
    return [name, *(one for one in results if one[0] != "_")]


def _block(path: str, options: dict[str, Any]) -> list[str]:
    return [f"::: {path}", "    options:", *(f"      {key}: {json.dumps(value)}" for key, value in options.items()), ""]


def notebook_page(file: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and the pictures that its cells showed, by name."""
    pictures: dict[str, bytes] = {}
    parts: list[str] = []
    for number, cell in enumerate(json.loads(file.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code":
            parts.append(_fenced(source, "python"))
            for place, output in enumerate(cell.get("outputs", ())):
                parts += _output(output, f"{file.stem}-{number}-{place}.png", pictures)
    return "\n\n".join(parts) + "\n", pictures


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        said = "".join(data.get("text/plain", ())).replace("\n", " ")
        yield f"![{'Figure' if said.startswith('<') or not said else said}]({name})"
    elif "text/html" in data:
        inside = "".join(data["text/html"])
        yield f'<div class="output">{"".join(line for line in inside.splitlines(True) if line.strip())}</div>'
    elif output["output_type"] == "error":
        yield _fenced(f"{output['ename']}: {output['evalue']}", "text")
    elif text := "".join(output.get("text", data.get("text/plain", ()))):
        yield _fenced(text.rstrip(), "text")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text}\n````"


# What mkdocs calls.


def on_config(config: Any) -> Any:
    notebooks = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    if notebooks:
        config.nav.insert(3, {"Tutorials": [f"tutorials/{file.stem}.md" for file in notebooks]})
    reference = next(one["Reference"] for one in config.nav if "Reference" in one)
    reference += [{face: f"api/{face}.md"} for face in FACES]
    return config


def on_files(files: Files, config: Any) -> Files:
    for face in FACES:
        files.append(File.generated(config, f"api/{face}.md", content=api_page(face)))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        text, pictures = notebook_page(notebook)
        files.append(File.generated(config, f"tutorials/{notebook.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files
