"""What several commands share."""

import csv
import io
from argparse import Namespace
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from semvq.data.images import ImageSet, save_png
from semvq.launch import find_launch
from semvq.recipes import import_file

MOST_NAMES = 10  # of a list that a message names


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
    return find_launch().rank == 0


def flag(name: str) -> str:
    """The option that a name in the code stands for."""
    return f"--{name.replace('_', '-')}"


def sampling_options(options: Namespace, known: tuple[str, ...]) -> dict[str, Any]:
    """The sampling options that were given; ValueError for one this generator does not take."""
    names = (
        "temperature", "guidance", "guidance_schedule", "top_k", "top_p", "steps",
        "choice_temperature", "order",
    )  # fmt: skip
    chosen = {k: v for k in names if (v := getattr(options, k)) is not None}
    for name in chosen:
        if name not in known:
            flags = ", ".join(flag(k) for k in names if k in known)
            raise ValueError(
                f"{flag(name)}: expected a sampling option of {options.run} ({flags}), "
                "found one that it does not take; leave it out"
            )
    return chosen


def check_classes(image_set: ImageSet, names: Sequence[str], num_classes: int) -> None:
    """ValueError where a conditional generator's classes are not those of the images."""
    if num_classes and image_set.classes != tuple(names):
        found = image_set.classes
        first = next(i for i, (a, b) in enumerate(zip_longest(names, found)) if a != b)
        at = f"; the first that differs is number {first}" if first >= MOST_NAMES else ""
        raise ValueError(
            f"{image_set.root}: expected the classes {quoted(names)}; found {quoted(found)}{at}"
        )


def quoted(names: Sequence[str]) -> str:
    """Names in quotes, for one may hold a comma; of many the first, and how many more."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more or "none"


def as_csv(records: Iterable[dict[str, Any]], columns: Sequence[str]) -> str:
    """A head and a line for every record."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def write(sheet: Tensor, path: Path) -> None:
    """Save an image (3, H, W) in [-1, 1] and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet, path)
    print(path)
