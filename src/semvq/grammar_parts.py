"""Options that several commands of the grammar share; no torch here either."""

import argparse
from pathlib import Path


def overrides(p: argparse.ArgumentParser) -> None:
    """`--set KEY=VALUE`, any number of times."""
    p.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        type=_assignment,
        default=[],
        help="change the recipe, e.g. --set loop.batch_size=64; repeat for more",
    )


def _assignment(text: str) -> str:
    """A value of --set. Refused here, or a value apart would be an "unrecognized argument"."""
    if "=" not in text:
        advice = f"write them as one word, in quotes if there are spaces: --set '{text}=VALUE'"
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found '{text}'; {advice}")
    return text


def run(p: argparse.ArgumentParser, what: str) -> None:
    """A run's folder, in words `what`, and `--code`."""
    p.add_argument("run", type=Path, help=f"folder of {what}")
    p.add_argument(
        "--code", type=Path, help="Python file with your own classes, if the run has any"
    )


def device(p: argparse.ArgumentParser) -> None:
    """`--device`."""
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
