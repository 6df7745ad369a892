"""What the commands of `bench` have in common: mistakes end in one line and exit code 2."""

import argparse
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NoReturn

import torch

from bench.case import Row, Setting
from semvq.config import did_you_mean


class Parser(argparse.ArgumentParser):
    """Without the usage above a mistake; a help text keeps its lines."""

    def __init__(self, prog: str, about: str | None) -> None:
        super().__init__(
            prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """One line, exit code 2."""
        print(f"{self.prog.removeprefix('python -m ')}: {message}", file=sys.stderr)
        sys.exit(2)


def add_setting(p: argparse.ArgumentParser) -> None:
    """--device, --quick and --precision."""
    p.add_argument("--device", choices=("cpu", "cuda"), help="CUDA where there is one")
    p.add_argument("--quick", action="store_true", help="smaller sizes")
    p.add_argument(
        "--precision", choices=("bf16", "fp32"), help="default: bf16 on CUDA, fp32 on a CPU"
    )


def setting_of(p: argparse.ArgumentParser, options: argparse.Namespace) -> Setting:
    """Where and how large; a mistake where CUDA is asked for and is not there."""
    if options.device == "cuda":
        need_cuda(p, "give --device cpu")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Setting.of(device, options.quick, options.precision)


def need_cuda(p: argparse.ArgumentParser, advice: str) -> None:
    """A mistake where there is no CUDA device."""
    if not torch.cuda.is_available():
        p.error(f"expected a CUDA device, found none; {advice}")


def above_zero(text: str) -> float:
    """A number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found '{text}'")
    return value


def one_or_more(text: str) -> int:
    """A count."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found '{text}'")
    return int(text)


def rows_named(p: argparse.ArgumentParser, names: Sequence[str], known: Sequence[Row]) -> list[Row]:
    """The rows of these names or patterns; a mistake for a name that is no row's."""
    unknown = [n for n in names if not any(fnmatchcase(row.name, n) for row in known)]
    if unknown:
        found = ", ".join(f"'{n}'{did_you_mean(n, [row.name for row in known])}" for n in unknown)
        p.error(f"expected rows that --list names, found {found}")
    return [row for row in known if any(fnmatchcase(row.name, n) for n in names)]
