"""semvq: SeQ-GAN tokenizers, the transformers that learn their codes, and what they can predict.

The public names load on first use, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semvq.generators.base import Generator
    from semvq.interop import load_generator, load_tokenizer, push_to_hub
    from semvq.tokenizer.model import Tokenizer

__version__ = "0.1.0"
__all__ = ["Generator", "Tokenizer", "load_generator", "load_tokenizer", "push_to_hub"]

_HOMES = {
    "Generator": "semvq.generators.base",
    "Tokenizer": "semvq.tokenizer.model",
    "load_generator": "semvq.interop",  # which knows the networks of all runs, and the hub
    "load_tokenizer": "semvq.interop",
    "push_to_hub": "semvq.interop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'semvq' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
