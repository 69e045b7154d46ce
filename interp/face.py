"""The face of a package: the names that its stub `__init__.pyi` lists, each imported when it is first used."""

import ast
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class _Face(ModuleType):
    """A package whose names stay what they are: no module `analyses.ablation` takes the place of its function."""

    _homes: Mapping[str, str]

    def __getattr__(self, name: str) -> Any:
        if name not in self._homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        home = self._homes[name]
        return import_module(f"{home}.{name}") if home == self.__name__ else getattr(import_module(home), name)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and name in self._homes and hasattr(value, name):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(self._homes)


def face(package: str) -> list[str]:
    """Gives a package the names of its stub, which type checkers read too; they are what `__all__` is to be."""
    module = sys.modules[package]
    stub = ast.parse(Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: f"{node.module}" for node in imports for alias in node.names}
    vars(module)["_homes"] = homes
    module.__class__ = _Face
    return sorted(homes)
