"""`python -m interp` is the command `interp`."""

import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path


def strangers() -> list[str]:
    """Other people's packages that are found in place of the two beside this one, such as a folder `reports` here."""
    home = Path(__file__).resolve().parent.parent
    found = []
    for name in ("analyses", "reports"):
        spec = find_spec(name)
        place = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))) if spec else home / name / "_"
        if place.resolve().parent != home / name:
            found.append(str(place))
    return found


if __name__ == "__main__":
    if others := strangers():
        print(f"error: {others[0]} stands before interp's own package of that name", file=sys.stderr)
        print("  expected a path without folders called analyses or reports", file=sys.stderr)
        print("  run the command interp, or start elsewhere", file=sys.stderr)
        raise SystemExit(2)
    for command in entry_points(group="console_scripts", name="interp"):
        command.load()()
