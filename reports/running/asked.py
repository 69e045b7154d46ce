"""One analysis as it was asked, in values that a file can hold; its result, and the page of that alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reports.running.discovery import Analysis

if TYPE_CHECKING:
    from interp.loading.any import AnyModel
    from interp.models.config import GPTConfig
    from interp.models.gpt import HookedGPT
    from reports.page.html import Report, Section


@dataclass(frozen=True)
class Asked:
    """What an analysis was asked, in values that a file can hold."""

    model: str
    """As --model names it."""
    text: Any
    """A text, several, or None where the analysis does without."""
    options: Mapping[str, Any]
    """As typed: files and models that it loads are paths and names."""
    prompts: str | None = None
    """A prompt set as JSON lines, in place of a text."""
    where: str = "prompts"
    """Where the prompts stood, for messages."""
    sweeps: str | None = None
    """The dtype of sweeps, where it is lower than the model's."""

    @property
    def tokens(self) -> Any:
        """What the analysis gets in place of the text."""
        from analyses.shared.prompts import parse_prompts

        return self.text if self.prompts is None else parse_prompts(self.prompts, where=self.where)


def measure(analysis: Analysis, model: "AnyModel | GPTConfig | None", asked: Asked) -> "Section":
    """The analysis, on what was asked."""
    from reports.running.report import run

    loaders = {option.name: option.load for option in analysis.options() if option.load is not None}
    values = {k: loaders[k](v) if k in loaders and v is not None else v for k, v in asked.options.items()}
    return run(analysis, model, asked.tokens, values)


def page_of(section: "Section", model: "AnyModel | None", analysis: Analysis, asked: Asked, command: str) -> "Report":
    """A report of one analysis; `model` is None when it looked at a shape alone."""
    from analyses.shared.prompts import PromptSet
    from reports.page.html import Report
    from reports.running import record
    from reports.running.report import labels_of, provenance

    if model is None:
        model = without_weights(shape_of(asked.model), asked.model)  # type: ignore[arg-type]
    tokens = asked.tokens
    texts = [prompt.clean for prompt in tokens] if isinstance(tokens, PromptSet) else tokens
    labels = () if texts is None else labels_of(model, texts)
    seed = int(asked.options.get("seed", 0))
    facts = provenance(model, [len(one) for one in labels], seed=seed, command=command)
    options = record.effective(analysis, asked.options)
    more = {"model": asked.model, "prompts": asked.prompts, "sweeps": asked.sweeps}
    facts |= {"options": options} | ({"dtype of sweeps": asked.sweeps} if asked.sweeps else {})
    facts |= record.kept([section], record.request(analysis.command, asked.text, options, **more))
    return Report(f"{section.title}: {model.source}", labels, (section,), facts)


def shape_of(name: str) -> "GPTConfig | None":
    """The shape of a model known by name, which needs neither weights nor network."""
    from interp.models.config import PRESETS

    return None if Path(name).expanduser().is_dir() else PRESETS.get(name)


def without_weights(shape: "GPTConfig", name: str) -> "HookedGPT":
    """A model of that shape which holds no numbers, to say in a report what was described."""
    import torch

    from interp.models.gpt import HookedGPT

    with torch.device("meta"):
        model = HookedGPT(shape)
    model.source = f"{name} (shapes only)"
    return model
