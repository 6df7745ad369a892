"""semvq: SeQ-GAN tokenizers, the transformers that learn their codes, and what they can predict.

The public names load on first use, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semvq.generators.base import Generator
    from semvq.generators.files import load_generator
    from semvq.tokenizer.files import load_tokenizer
    from semvq.tokenizer.model import Tokenizer

__version__ = "0.1.0"
__all__ = ["Generator", "Tokenizer", "load_generator", "load_tokenizer"]

_HOMES = {
    "Generator": "semvq.generators.base",
    "Tokenizer": "semvq.tokenizer.model",
    "load_generator": "semvq.generators.files",
    "load_tokenizer": "semvq.interop",  # which knows the networks of all runs
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'semvq' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
