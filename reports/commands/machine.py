"""`interp --version`: what decides the numbers, and where files are kept."""

import platform
from collections.abc import Iterator


def lines() -> Iterator[str]:
    """Versions, devices (first what --device auto takes), threads, and the folder of downloaded models."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from interp import __version__

    cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    apple = ["mps"] if torch.backends.mps.is_available() else []
    yield f"interp {__version__}"
    yield f"Python {platform.python_version()}, torch {torch.__version__}"
    yield f"devices: {', '.join([*cards, *apple, 'cpu'])}; {torch.get_num_threads()} threads"
    yield f"downloaded models: {HF_HUB_CACHE}"
