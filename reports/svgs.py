"""SVG in few bytes: matplotlib's made smaller, any as a data URI, and small pictures for the cards of a page."""

import re
from collections.abc import Sequence
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

TAG, ATTRIBUTE = re.compile(r"<[^>]*>"), re.compile(r"=\"([^\"']*)\"")
SMALL = (96.0, 54.0)
"""Width and height of a small picture, in CSS pixels."""


def uri(text: str) -> Markup:
    """SVG as a data URI for an attribute: shorter than base64, and a PNG inside is not written twice in base64."""
    text = TAG.sub(lambda tag: ATTRIBUTE.sub(r"='\1'", tag[0]), text.replace("\n", " "))
    return Markup("data:image/svg+xml," + quote(text, safe=" !$'()*+,-./:;=?@[]^_`{|}~"))


def smaller(data: bytes) -> bytes:
    """The same picture in fewer bytes: a tenth of a point is enough, and nobody refers to most names."""
    text = data.decode().replace("font-family: 'DejaVu Sans'; ", "")
    root = "<svg style=\"font-family: system-ui,'DejaVu Sans',sans-serif\""
    text = re.sub(r"<\?xml.*?<svg", root, text, count=1, flags=re.DOTALL)
    text = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", text)
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda part: re.sub(r"(\.\d)\d+", r"\1", part[0]), text)
    text = re.sub(r' d="([^"]*)"', lambda path: f' d="{_plain_path(path[1])}"', text)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w-]+)"', lambda name: name[0] if name[1] in used else "", text)
    text = re.sub(r">\s+<", "><", re.sub(r"; (?=[a-z-]+:)", ";", text))
    return re.sub(r"<g>((?:(?!</?g\b).)*)</g>", r"\1", text, flags=re.DOTALL).encode()


def _plain_path(path: str) -> str:
    """A path without the points inside a level or upright stretch, and without signs that go without saying."""
    kept: list[list[str]] = []
    for step in path.split("\n"):
        point = step.split()
        if point[:1] == ["L"] and kept[-1][0] == "L" and _on_the_way(kept[-2], kept[-1], point):
            kept.pop()
        kept += [point] if point else []
    return re.sub(r"(?<=\d)L", " ", "".join(p[0] + " ".join(p[1:]) for p in kept))


def _on_the_way(*points: Sequence[str]) -> bool:
    """Whether the second of three points lies on a level or upright line from the first to the third."""
    (x0, y0), (x1, y1), (x2, y2) = ([float(part) for part in point[1:]] for point in points)
    return (y0 == y1 == y2 and (x1 - x0) * (x2 - x1) >= 0) or (x0 == x1 == x2 and (y1 - y0) * (y2 - y1) >= 0)


def curves(series: Sequence[np.ndarray]) -> Markup:
    """At most four curves on common axes."""
    known = [values[np.isfinite(values)] for values in series[:4]]
    known = [values for values in known if values.size > 1]
    if not known:
        return Markup()
    low, high = min(values.min() for values in known), max(values.max() for values in known)
    paths = [
        " ".join(
            f"{3 + (SMALL[0] - 6) * i / (len(values) - 1):.1f},{SMALL[1] - 4 - (SMALL[1] - 8) * share:.1f}"
            for i, share in enumerate((values - low) / ((high - low) or 1.0))
        )
        for values in known
    ]
    colours = ("#2166ac", "#c2571a", "#6a51a3", "#222")
    drawn = (
        f'<polyline points="{p}" fill="none" stroke="{c}" stroke-width="1.6"/>'
        for p, c in zip(paths, colours, strict=False)
    )
    return _small("".join(drawn))


def columns(values: np.ndarray) -> Markup:
    """A column a number, blue above zero and red below."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)[:96]
    reach = float(np.abs(values).max(initial=0)) or 1.0
    signed = bool((values < 0).any())
    base, room = (SMALL[1] / 2, SMALL[1] / 2 - 3) if signed else (SMALL[1] - 3, SMALL[1] - 6)
    wide = (SMALL[0] - 6) / max(len(values), 1)
    drawn = (
        f'<rect x="{3 + i * wide:.1f}" y="{min(base, base - room * value / reach):.1f}" width="{0.8 * wide:.1f}"'
        f' height="{abs(room * value / reach):.1f}" fill="{"#d6604d" if value < 0 else "#4393c3"}"/>'
        for i, value in enumerate(values.tolist())
    )
    return _small("".join(drawn))


def _small(inner: str) -> Markup:
    size = f'width="{SMALL[0]:.0f}" height="{SMALL[1]:.0f}" viewBox="0 0 {SMALL[0]:.0f} {SMALL[1]:.0f}"'
    return uri(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inner}</svg>')
