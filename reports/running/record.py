"""What a page keeps so that it can be run again and checked: the request, each table's numbers, its own digest.

Everything is plain JSON in the page's provenance. A table is kept as the SHA-256 of all its values and as the values
themselves, to eight digits, of so many evenly spaced rows that at most CELLS are kept. The page's own digest covers all
of the file, so any change by accident or by hand is noticed; who makes the digest anew can forge a page.
"""

import base64
import hashlib
import json
import math
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from interp.errors import InputError
from reports.running.discovery import Analysis

FOR_MACHINES = ("request", "numbers", "page_sha256")
"""Entries of the provenance that are of no use to a reader."""
CELLS = 20_000
"""Values of a table that a page keeps; larger tables keep every second, third, ... row."""
DIGITS = 8
LARGEST = 1 << 26
"""Bytes that a kept table may unpack to: what a page says is not trusted."""
BLANK = "0" * 64
TOLERANCE = {"float64": 1e-8, "float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Of the largest value of a column: what another machine's kernels may change, by the model's dtype."""


# The request.


def request(command: str, text: Any, options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What a command was asked, as plain values.

    Args:
        command: the name it is run again by: "report", or an analysis' command.
        text: a text, several, token ids [batch pos] or a Batch of them, or None.
        options: of the analysis; in a report, of each by its name.
    """
    rows = getattr(text, "rows", None)  # of a Batch
    given = rows() if rows else text.tolist() if hasattr(text, "tolist") else text
    plain = given if given is None or isinstance(given, str) else list(given)
    return {"command": command, "text": plain, "options": options, **more}


def effective(analysis: Analysis, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of an analysis that a file can hold, with the value it had: given, or the default."""
    values = {o.name: given.get(o.name, o.default) for o in analysis.options() if not o.hidden or o.name in given}
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def kept(sections: Iterable[Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """For the provenance of a page of these sections (`reports.page.html.Section`): the request, and every table."""
    return {"request": asked, "numbers": {section.name: keep(section.result.to_dataframe()) for section in sections}}


# The numbers.


def keep(frame: pd.DataFrame, cells: int = CELLS) -> dict[str, Any]:
    """A table as a page keeps it."""
    step = max(1, math.ceil(frame.size / cells))
    values = json.dumps([_values(frame.iloc[::step, i]) for i in range(frame.shape[1])], separators=(",", ":"))
    return {
        "rows": len(frame),
        "step": step,
        "columns": list(map(str, frame.columns)),
        "sha256": digest(frame),
        "values": base64.b64encode(zlib.compress(values.encode(), 9)).decode("ascii"),
    }


def digest(frame: pd.DataFrame) -> str:
    """SHA-256 of a table's names and of all its values, to the last bit."""
    whole = hashlib.sha256(json.dumps(list(map(str, frame.columns))).encode())
    for i in range(frame.shape[1]):
        column = frame.iloc[:, i]
        if column.dtype.kind in "iufb":
            whole.update(column.to_numpy(dtype=float, na_value=np.nan).tobytes())
        else:
            whole.update(json.dumps(_values(column, None)).encode())
    return whole.hexdigest()


def _values(column: "pd.Series[Any]", digits: int | None = DIGITS) -> list[Any]:
    """Numbers, to so many digits; words; None for what is missing."""
    return [_value(value, digits) for value in column.tolist()]


def _value(value: Any, digits: int | None) -> Any:
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if isinstance(value, (int, float, np.number)):
        value = value.item() if isinstance(value, np.number) else value
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "inf" if value > 0 else "-inf"
        whole = float(value).is_integer() and abs(value) < 2**53
        return int(value) if whole else float(value) if digits is None else float(f"{float(value):.{digits}g}")
    return None if value is None or value is pd.NA or value is pd.NaT else str(value)


@dataclass(frozen=True)
class Difference:
    """How a table that was made again compares with the one that a page keeps."""

    table: str
    """The analysis."""
    rows: int
    compared: int
    """Rows whose values were compared; all of them entered the digest."""
    outcome: str
    """identical: to the last bit; empty: both have no row; close: within the tolerance; differs."""
    largest: float
    """Largest difference, as a share of the largest value of its column."""
    where: str = ""
    """Of a table that differs, what differs most."""


def compare(name: str, kept: Mapping[str, Any], frame: pd.DataFrame | None, tolerance: float) -> Difference:
    """One table. A number may differ by `tolerance` times the largest value of its column; words must be equal.

    Raises InputError when what was kept cannot be read.
    """
    columns, old = _unpacked(name, kept)
    if frame is None:
        return Difference(name, kept["rows"], 0, "differs", math.inf, "the analysis was not run")
    if (len(frame), list(map(str, frame.columns))) != (kept["rows"], columns):
        before, now = (f"{rows} rows of {', '.join(names)}" for rows, names in (
            (kept["rows"], columns), (len(frame), list(map(str, frame.columns)))))  # fmt: skip
        return Difference(name, len(frame), 0, "differs", math.inf, f"{now}; the page has {before}")
    compared = len(range(0, len(frame), kept["step"]))
    if digest(frame) == kept["sha256"]:
        return Difference(name, len(frame), compared, "identical" if len(frame) else "empty", 0.0)
    largest, where = 0.0, ""
    for i, column in enumerate(columns):
        new = _values(frame.iloc[:: kept["step"], i])
        reach = max((abs(v) for v in old[i] if not isinstance(v, str) and v is not None), default=0.0)
        for row, (was, now) in enumerate(zip(old[i], new, strict=True)):
            off = _difference(was, now, reach)
            if off > largest:
                largest = off
                where = f"{column}, row {row * kept['step']}: {_shown(now)}; the page has {_shown(was)}"
    outcome = "differs" if largest > tolerance else "close"
    return Difference(name, len(frame), compared, outcome, largest, where if outcome == "differs" else "")


def _difference(was: Any, now: Any, reach: float) -> float:
    if was == now:
        return 0.0
    if isinstance(was, (str, type(None))) or isinstance(now, (str, type(None))):
        return math.inf
    return abs(now - was) / reach if reach else math.inf


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else repr(value)[:60]


def _unpacked(name: str, kept: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """The columns' names and kept values, after a look at everything that `compare` relies on."""
    damaged = InputError(f"the numbers kept for {name} cannot be read", "expected a page as interp wrote it")
    try:
        rows, step, columns = kept["rows"], kept["step"], kept["columns"]
        unpack = zlib.decompressobj()
        text = unpack.decompress(base64.b64decode(kept["values"], validate=True), LARGEST)
        values = json.loads(text)
    except (KeyError, TypeError, ValueError, zlib.error, RecursionError):
        raise damaged from None
    plain = _is_count(rows) and _is_count(step) and step > 0 and isinstance(columns, list)
    if not (plain and isinstance(values, list) and len(values) == len(columns) and isinstance(kept["sha256"], str)):
        raise damaged
    for column in values:
        if not isinstance(column, list) or len(column) != len(range(0, rows, step)):
            raise damaged
        if not all(v is None or isinstance(v, str) or (isinstance(v, (int, float)) and _is_finite(v)) for v in column):
            raise damaged
    return list(map(str, columns)), values


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_finite(value: float) -> bool:
    """Whether a float can hold it: not so for a very large whole number."""
    return isinstance(value, float) or abs(value) <= sys.float_info.max


# The page: the block that holds all this, and a digest of the whole.


def block(provenance: Mapping[str, Any]) -> Markup:
    """The provenance as JSON that is safe inside `<script>`: ASCII, no `<`, `>`, `&`, no NaN; floats in full."""
    facts = json.dumps(jsonable({**provenance, "page_sha256": BLANK}), allow_nan=False, separators=(",", ":"))
    return Markup(facts.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def jsonable(data: Any) -> Any:
    """Plain values; null for what is no finite number."""
    if isinstance(data, Mapping):
        return {str(key): jsonable(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [jsonable(item) for item in data]
    if isinstance(data, np.generic):
        data = data.item()
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data if data is None or isinstance(data, (bool, int, float, str)) else str(data)


def sealed(page: str) -> str:
    """The page with the SHA-256 of all of it (that entry blank) in place of the blank."""
    mark = f'"page_sha256":"{BLANK}"'
    return page.replace(mark, f'"page_sha256":"{_digest(page)}"', 1) if page.count(mark) == 1 else page


def is_intact(page: str, said: str) -> bool:
    """Whether nothing changed since the page was sealed."""
    return _digest(page.replace(f'"page_sha256":"{said}"', f'"page_sha256":"{BLANK}"', 1)) == said


def _digest(page: str) -> str:
    return hashlib.sha256(page.encode("utf-8", "surrogatepass")).hexdigest()
