"""`python -m interp` is the command `interp`."""

from importlib.metadata import entry_points

for command in entry_points(group="console_scripts", name="interp"):
    command.load()()
