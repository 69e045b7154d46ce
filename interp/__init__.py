"""interp: a hooked GPT. `from interp import HookedGPT`. The names are listed in `__init__.pyi`; importing is cheap."""

from interp.face import face

__all__ = face(__name__)
