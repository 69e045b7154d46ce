"""How long a report will take, by how long the last one on a model of the same shape took on this machine.

The times lie beside what a report keeps for later runs (`interp.keeping.remembered`). What was kept there counts as no
time: the next report finds it. Nothing is said of a model, a length of text or an analysis that was never timed.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from interp.errors import InterpError
from interp.files import atomic_path
from interp.keeping import Memory, code, digest

FILE = "times.json"
RUNS = 50
"""Reports whose times are kept."""
LIKE = 2.0
"""How many times longer or shorter a text may be than the one that was timed."""
LEAST = 2.0
"""Seconds from which on an expectation is worth a line."""


@dataclass
class Times:
    """Of one report: what is expected of it, and what its parts take."""

    memory: Memory
    shape: str
    """A digest of the model's shape, dtype and device, and of the code."""
    lengths: Sequence[int]
    """Tokens of each text."""
    asked: Sequence[str]
    """Names of the analyses."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Analysis -> what it took, less what was spent on things that stay. "" is all that is no analysis."""
    _since: float = 0.0

    @classmethod
    def of(cls, memory: Memory, model: Any, lengths: Sequence[int], asked: Sequence[str]) -> "Times":
        shape = digest((code(), type(model).__name__, model.config, str(model.dtype), str(model.device)))
        return cls(memory, shape, lengths, asked, _since=_spent(memory))

    def lap(self, name: str = "") -> None:
        """All time since the last lap was this analysis', or, by default, no analysis'."""
        now = _spent(self.memory)
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def expected(self) -> float | None:
        """Seconds, by the report on the same shape whose text was most like this one; None where there is none."""
        length = sum(self.lengths)
        alike = [run for run in self._runs() if run["shape"] == self.shape and run["texts"] == len(self.lengths)]
        known = [run for run in alike if {"", *self.asked} <= run["seconds"].keys()]
        found = min(reversed(known), key=lambda run: _ratio(run["tokens"], length), default=None)
        if found is None or _ratio(found["tokens"], length) > LIKE:
            return None
        return float(sum(found["seconds"][name] for name in ("", *self.asked)))

    def said(self, model: Any) -> str:
        """Such as "about 40 s more: 20 analyses of a 124 M parameter model on 77 tokens"; "" where that is unknown, or
        is less than LEAST seconds."""
        seconds = self.expected()
        if seconds is None or seconds < LEAST:
            return ""
        size = sum(parameter.numel() for parameter in model.parameters())
        unit, letter = next((pair for pair in ((1e9, " B"), (1e6, " M"), (1e3, " k")) if size >= pair[0]), (1, ""))
        texts = f"{len(self.lengths)} texts, " * (len(self.lengths) > 1) + f"{sum(self.lengths):,} tokens"
        time = f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"
        many = f"{len(self.asked)} analyses" if len(self.asked) > 1 else "1 analysis"
        return f"about {time} more: {many} of a {size / unit:.3g}{letter} parameter model on {texts}"

    def keep(self) -> None:
        """For later reports. A place that cannot be written is no error."""
        seconds = dict.fromkeys(self.asked, 0.0) | self.seconds
        run = {"shape": self.shape, "texts": len(self.lengths), "tokens": sum(self.lengths), "seconds": seconds}
        with suppress(OSError, InterpError):
            self.memory.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.memory.folder / FILE) as temporary:
                temporary.write_text(json.dumps([*self._runs(), run][-RUNS:]), encoding="utf-8")

    def _runs(self) -> list[dict[str, Any]]:
        with suppress(OSError, ValueError):
            runs = json.loads((self.memory.folder / FILE).read_text(encoding="utf-8"))
            return [run for run in runs if _sound(run)] if isinstance(runs, list) else []
        return []


def _spent(memory: Memory) -> float:
    return memory.clock() - memory.saved


def _ratio(one: int, other: int) -> float:
    return max(one, other) / max(1, min(one, other))


def _sound(run: Any) -> bool:
    """Whether a file that anybody may have written holds what `keep` writes."""
    parts = (str, int, int, dict)
    found = [run.get(name) for name in ("shape", "texts", "tokens", "seconds")] if isinstance(run, dict) else [None] * 4
    fits = all(isinstance(part, kind) for part, kind in zip(found, parts, strict=True))
    return fits and all(isinstance(value, (int, float)) for value in run["seconds"].values())
