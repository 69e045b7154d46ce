"""One result for each stack, or attention, of a model that has several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from analyses.shared.panels import Finding, Panel, Result
from analyses.shared.stacks import Stack


@dataclass(frozen=True, kw_only=True)
class StacksResult(Result):
    """What an analysis says of each stack: the panels of each, with its name before their keys."""

    kinds: tuple[Stack, ...]
    stacks: tuple[Result, ...]
    """[kind]"""

    def __getitem__(self, name: str) -> Result:
        """The result of the stack of this name, such as `encoder`."""
        return self.stacks[[kind.name for kind in self.kinds].index(name)]

    def to_dataframe(self) -> pd.DataFrame:
        """The rows of every stack, its name in a column `stack`, behind `text` where there is one."""
        frames = [result.to_dataframe() for result in self.stacks]
        for kind, frame in zip(self.kinds, frames, strict=True):
            frame.insert(int(frame.columns[0] == "text"), "stack", kind.name)
        return pd.concat(frames, ignore_index=True)

    def panels(self) -> list[Panel]:
        return [
            replace(panel, key=f"{kind.name}-{panel.key}", title=f"{panel.title} ({kind.words})")
            for kind, result in zip(self.kinds, self.stacks, strict=True)
            for panel in result.panels()
        ]

    def findings(self) -> list[Finding]:
        return [
            replace(
                finding,
                key=f"{kind.name}-{finding.key}",
                text=f"{kind.words[0].upper()}{kind.words[1:]}: {finding.text}",
                about=f"{kind.short} {finding.about}".strip() if finding.about else "",
            )
            for kind, result in zip(self.kinds, self.stacks, strict=True)
            for finding in result.findings()
        ]


def by_stack(kinds: Sequence[Stack], results: Sequence[Result]) -> Result:
    """The result itself where a model has one stack, else all of them."""
    return results[0] if len(results) == 1 else StacksResult(kinds=tuple(kinds), stacks=tuple(results))
