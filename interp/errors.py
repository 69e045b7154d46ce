"""Errors that a user can act on. Each says what failed, what was received and expected, and what to try next.

The command line prints the message as it stands (at most three lines) and exits with `exit_code`; from Python they are
ordinary exceptions.
"""


class InterpError(Exception):
    """Base of every error this project raises on purpose. `str(error)` is the whole message, at most three lines."""

    exit_code = 2

    def __init__(self, what: str, expected: str = "", hint: str = "") -> None:
        super().__init__("\n".join(line for line in (what, expected, hint) if line))


class InputError(InterpError, ValueError):
    """A value that cannot be used: a wrong shape, an empty text, an unknown option."""


class NotApplicable(InputError):
    """An analysis asked of a model that lacks the part that it is about."""


class HookNameError(InterpError, KeyError):
    """A hook name, pattern or cache key that matches nothing; the message lists the nearest names."""

    __str__ = InterpError.__str__


class LoadError(InterpError):
    """A model directory that is there but cannot be used: a missing tensor, a wrong shape, a damaged file."""


class NotFoundError(InterpError, FileNotFoundError):
    """A file, directory, model or hub entry that is not there, or a hub that cannot be reached."""

    exit_code = 3
    __str__ = InterpError.__str__


class MemoryLimitError(InterpError):
    """A request that would need more memory than there is."""

    exit_code = 4


class CheckFailed(InterpError):
    """A check that ran and did not hold."""

    exit_code = 5


def check_seed(seed: object) -> None:
    """Raises InputError for what cannot seed every generator: not a whole number, below 0, or 2^32 and above."""
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed {seed}", f"expected a whole number from 0 to {2**32 - 1}")


def nearest(name: str, known: list[str], count: int = 3) -> list[str]:
    """The `count` entries of `known` that look most like `name`, best first; empty when none does."""
    import difflib

    return difflib.get_close_matches(name, known, n=count, cutoff=0.5)
