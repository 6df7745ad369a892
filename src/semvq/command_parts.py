"""What several commands share."""

import os
from argparse import Namespace
from pathlib import Path

from torch import Tensor

from semvq.data.images import save_png
from semvq.recipes import import_file


def at_least_one(**counts: int) -> None:
    """ValueError for the first count below 1; names are those of the options."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{flag(name)}: expected at least 1, found {value}")


def import_code(options: Namespace) -> None:
    """Run the user's file of `--code`, so that the run's own classes are known."""
    if options.code:
        import_file(options.code)


def is_first_process() -> bool:
    """Whether this is the only process, or the one that speaks for several."""
    return os.environ.get("RANK", "0") == "0"


def flag(name: str) -> str:
    """The option that a name in the code stands for."""
    return f"--{name.replace('_', '-')}"


def write(sheet: Tensor, path: Path) -> None:
    """Save an image (3, H, W) in [-1, 1] and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet, path)
    print(path)
