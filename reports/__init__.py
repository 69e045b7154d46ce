"""Results as pages, figures, terminal output and commands. Names are imported when first used: importing is cheap.

Within IPython, importing this makes results show themselves (`reports.notebook`).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.figures import figure as figure
    from reports.html import Report as Report
    from reports.html import Section as Section
    from reports.html import render as render
    from reports.notebook import show as show
    from reports.run import report as report
    from reports.run_study import study as study

_HOME = {
    "Report": "html",
    "Section": "html",
    "figure": "figures",
    "render": "html",
    "report": "run",
    "show": "notebook",
    "study": "run_study",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'reports' has no attribute {name!r}")
    return getattr(import_module(f"reports.{_HOME[name]}"), name)


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
    for module, name in (("analyses._panels", "Result"), ("analyses._panels", "Panel"), ("reports.html", "Report")):
        formatters.mimebundle_formatter.for_type_by_name(module, name, bundle)
    formatters.formatters["image/png"].for_type_by_name("matplotlib.figure", "Figure", png)


_in_ipython()
