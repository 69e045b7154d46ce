"""interp: a hooked GPT. `from interp import HookedGPT`. Names are imported when first used: importing is cheap."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.activations import ActivationStore as ActivationStore
    from interp.cache import ActivationCache as ActivationCache
    from interp.config import GPTConfig as GPTConfig
    from interp.encoder import HookedEncoder as HookedEncoder
    from interp.encoder_decoder import HookedEncoderDecoder as HookedEncoderDecoder
    from interp.errors import InterpError as InterpError
    from interp.extraction import extract_activations as extract_activations
    from interp.factored import FactoredMatrix as FactoredMatrix
    from interp.hooks import HookPoint as HookPoint
    from interp.interventions import Add as Add
    from interp.interventions import Affine as Affine
    from interp.interventions import Replace as Replace
    from interp.loading import load as load
    from interp.model import HookedGPT as HookedGPT
    from interp.processing import process_weights as process_weights

__version__ = "0.1.0"

_HOME = {
    "ActivationCache": "cache",
    "ActivationStore": "activations",
    "Add": "interventions",
    "Affine": "interventions",
    "FactoredMatrix": "factored",
    "GPTConfig": "config",
    "HookPoint": "hooks",
    "HookedEncoder": "encoder",
    "HookedEncoderDecoder": "encoder_decoder",
    "HookedGPT": "model",
    "InterpError": "errors",
    "Replace": "interventions",
    "extract_activations": "extraction",
    "load": "loading",
    "process_weights": "processing",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(import_module(f"interp.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
