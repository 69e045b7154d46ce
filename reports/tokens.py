"""How token labels are shown: a leading space as a middle dot, a newline as a return sign, what is invisible escaped.

`label` gives plain text (figures, terminals, the browser's canvas); `markup` gives HTML in which the stand-in signs
are dim, so that they cannot be mistaken for the token's own characters.
"""

import unicodedata
from functools import lru_cache

from markupsafe import Markup, escape

MINUS = "\N{MINUS SIGN}"
SPACE, NEWLINE, TAB, EMPTY, CUT = "·", "↵", "⇥", "∅", "…"
_STAND_IN = {"\n": NEWLINE, "\t": TAB}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(char: str) -> str:
    """A character that cannot be seen (or would reorder what can), as its code; any other as it is."""
    if char != " " and (unicodedata.category(char) in _INVISIBLE or unicodedata.category(char) == "Zs"):
        code = ord(char)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return char


def printable(text: str) -> str:
    """Any text with control characters, direction marks and lone surrogates written as codes; spaces stay."""
    return text if text.isascii() and text.isprintable() else "".join(map(_escaped, text))


@lru_cache(maxsize=65536)
def parts(token: str, limit: int | None = None) -> tuple[tuple[str, bool], ...]:
    """The token as (text, is stand-in) runs; longer than `limit` characters it ends in an ellipsis."""
    if not token:
        return ((EMPTY, True),)
    cut = limit is not None and len(token) > limit
    shown = token[:limit] if cut else token
    inner = shown.strip(" ")
    start = len(shown) - len(shown.lstrip(" ")) if inner else len(shown)
    end = start + len(inner)
    runs: list[tuple[str, bool]] = []
    for i, char in enumerate(shown):
        edge = char == " " and not start <= i < end
        text = SPACE if edge else _STAND_IN.get(char) or _escaped(char)
        dim = edge or text != char
        if runs and runs[-1][1] == dim:
            runs[-1] = (runs[-1][0] + text, dim)
        else:
            runs.append((text, dim))
    return (*runs, (CUT, True)) if cut else tuple(runs)


def label(token: str, limit: int | None = 24) -> str:
    """Plain text for a token, at most `limit` of its characters (`None`: all of them)."""
    return "".join(text for text, _ in parts(token, limit))


def markup(token: str, limit: int | None = 24, *, isolate: bool = True) -> Markup:
    """HTML for a token: isolated from the direction of its surroundings, stand-in signs dim.

    Args:
        isolate: by an element of its own; False inside cells and strips, which the style sheet isolates.
    """
    inner = Markup().join(
        Markup("<i>{}</i>").format(text) if dim else escape(text) for text, dim in parts(token, limit)
    )
    return Markup("<bdi>{}</bdi>").format(inner) if isolate else inner


def coded(token: str, limit: int | None = 24) -> str:
    """For the page's scripts: the label, its stand-in signs between U+0001 and U+0002 (which never occur otherwise)."""
    return "".join(f"\x01{text}\x02" if dim else text for text, dim in parts(token, limit))
