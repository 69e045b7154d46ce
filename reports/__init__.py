"""Results as pages, figures, terminal output and commands. The names are listed in `__init__.pyi`; importing is cheap.

Within IPython, importing this makes results show themselves (`reports.notebook`).
"""

import sys
from importlib import import_module

from interp.face import face

__all__ = face(__name__)


def _in_ipython() -> None:
    """Results show themselves in an IPython shell that is running; elsewhere this does nothing and loads nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return

    def bundle(thing: object, **_: object) -> object:
        return import_module("reports.notebook").bundle(thing)

    def png(figure: object) -> object:
        return import_module("reports.notebook").figure_png(figure)

    formatters = shell.display_formatter
    for module, name in (
        ("analyses.shared.panels", "Result"),
        ("analyses.shared.panels", "Panel"),
        ("reports.page.html", "Report"),
    ):
        formatters.mimebundle_formatter.for_type_by_name(module, name, bundle)
    formatters.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", png)


_in_ipython()
