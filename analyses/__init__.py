"""Analyses: one question a file, `name(model, tokens, *, ...) -> Result`. The names are listed in `__init__.pyi`."""

from interp.face import face

__all__ = face(__name__)
