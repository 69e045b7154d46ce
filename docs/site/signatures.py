"""Docstrings as the site shows them: axes such as `[text][key]` are no links, and what a signature says of an option
(`Annotated[type, "help"]`) is a row of the table of parameters."""

import ast
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Called by griffe for every object, and then for every function, that it has read from a file."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"\](?=\[|\((?!http))", r"]\\", obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        helps: dict[str, str] = {}
        for parameter in func.parameters:
            parameter.annotation, help = without_annotated(parameter.annotation)
            if help:
                helps[parameter.name] = help
        if func.docstring is None and not helps:
            return
        docstring = func.docstring = func.docstring or griffe.Docstring("", parent=func)
        sections = list(docstring.parse("google", warnings=False))
        table = next((one for one in sections if one.kind is griffe.DocstringSectionKind.parameters), None)
        said = {name: one.description for one in (table.value if table else ()) for name in one.name.split(", ")}
        said |= {name: help for name, help in helps.items() if name not in said}
        rows = [
            griffe.DocstringParameter(one.name, annotation=one.annotation, description=told, value=one.default)
            for one in func.parameters if (told := said.get(one.name)) is not None
        ]  # fmt: skip
        if table is not None:
            table.value[:] = rows
        elif rows:
            sections.insert(1, griffe.DocstringSectionParameters(rows))
        docstring.__dict__["parsed"] = sections


def without_annotated(annotation: Any) -> tuple[Any, str]:
    """The type and the help of `Annotated[type, "help", ...]`; any other annotation itself and ""."""
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left).endswith("Annotated"):
        kind, help, *_ = annotation.slice.elements
        return kind, _words(help)
    return annotation, ""


def _words(said: Any) -> str:
    """A string; what an f-string fills in by its name."""
    if isinstance(said, griffe.ExprJoinedStr):
        return "".join(map(_words, said.values))
    if isinstance(said, griffe.ExprFormatted):
        return f"`{said.value}`"
    if isinstance(said, griffe.Expr):
        return ""
    try:
        return str(ast.literal_eval(said))
    except (SyntaxError, ValueError):
        return str(said)  # the plain part of an f-string
