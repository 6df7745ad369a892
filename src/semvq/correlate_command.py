"""The command `semvq correlate`: which cheap figure ranks tokenizers as the FID of samples does.

It reads what `semvq compare --json` wrote. Agreement is Spearman's rank correlation, signed so that
1 means: the better the figure, the lower the FID.
"""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from semvq.command_parts import as_csv
from semvq.evaluation.rows import ROWS
from semvq.files import write_atomically

JUDGES = ("AR FID", "NAR FID")
FEWEST = 4  # tokenizers; three can stand in six orders only
NUM_DRAWS = 20_000  # with 2,000 another order of tokenizers moved an end by 0.08
# facts that may differ between files: each speaks of its own tokenizers, and images may lie
# anywhere, known by their fingerprint
OWN_FACTS = ("left out", "photos: images", "training images: images")
# differences that are told, not refused
MACHINE = ("device", "semvq", "torch", "pillow", "python")
Found = dict[str, dict[str, float]]  # file and tokenizer: row: value


class Agreement(NamedTuple):
    """Rank correlation of a figure with a judge over `num` tokenizers, and its 95 % interval."""

    figure: str
    judge: str
    num: int
    rho: float  # not a number where all have the same value
    low: float
    high: float


def correlate(options: Namespace) -> None:
    """`semvq correlate`: prints a table for each kind of transformer, the strongest first."""
    found = read(options.figures)
    console = Console()
    rows: list[Agreement] = []
    for judge in JUDGES:
        rows += (ranked := agreements(found, judge))
        if not ranked:
            continue
        sheet = Table(f"with {judge}", "rank correlation", "95 % interval", "tokenizers", box=None)
        for row in ranked:
            sheet.add_row(row.figure, *_texts(row), str(row.num))
        console.print(sheet)
    if not rows:
        raise ValueError(
            f"expected at least {FEWEST} tokenizers with {' or '.join(JUDGES)}, found fewer; give "
            "their AR or NAR runs and --train to semvq compare"
        )
    console.print(
        "1: the better the figure, the lower the FID. Intervals: bootstrap over tokenizers; few of "
        "them, and those of one family are alike",
        soft_wrap=True,
    )
    if machines := differing_machines(options.figures):
        console.print(f"Not all measured alike: {machines}", soft_wrap=True)
    if options.csv:
        write_atomically(options.csv, as_csv((row._asdict() for row in rows), Agreement._fields))


def read(files: Sequence[Path]) -> Found:
    """Values of every tokenizer in the files.

    Figures that are not finite are left out. ValueError for a file of something else, a tokenizer
    that is in two, or comparisons that were not made alike (other photos, samples, networks).
    """
    found: Found = {}
    hashes: set[str] = set()
    facts: dict[str, str] = {}
    for file in files:
        try:
            record = json.loads(file.read_text())
            figures, own = record["figures"], record["facts"]
            values = {
                name: {k: x for k, v in rows.items() if isfinite(x := float(v["value"]))}
                for name, rows in figures.items()
            }
        except OSError as error:
            raise ValueError(
                f"{file}: expected figures that semvq compare --json wrote, found none "
                f"({error.strerror})"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file}: expected figures that semvq compare --json wrote, found something else"
            ) from error
        own = {k: value for k, value in own.items() if k not in (*OWN_FACTS, *MACHINE)}
        _check_alike(files[0], facts or own, file, own)
        facts = facts or own
        for name, rows in values.items():
            weights = record.get("tokenizers", {}).get(name)  # older comparisons have none
            if weights in hashes or (weights is None and rows in found.values()):
                raise ValueError(f"{file}: expected each tokenizer once, found {name} again")
            hashes.update(filter(None, [weights]))
            found[f"{file}: {name}"] = rows  # other seeds' have the same name
    return found


def _check_alike(first: Path, facts: Mapping[str, str], file: Path, own: Mapping[str, str]) -> None:
    for name in {**facts, **own}:
        if facts.get(name) != own.get(name):
            raise ValueError(
                f"{file}: expected a comparison made as {first}, found another '{name}': "
                f"{own.get(name)} for {facts.get(name)}"
            )


def differing_machines(files: Sequence[Path]) -> str:
    """Devices and versions in which the comparisons differ; empty where in none."""
    facts = [json.loads(file.read_text())["facts"] for file in files]
    values = {name: {str(own.get(name)) for own in facts} for name in MACHINE}
    return "; ".join(f"{k} {', '.join(sorted(v))}" for k, v in values.items() if len(v) > 1)


def agreements(found: Found, judge: str) -> list[Agreement]:
    """Of every figure that tokenizers with this judge share, the strongest first.

    Figures that have no better direction count as better where higher. Empty for fewer than
    `FEWEST` tokenizers.
    """
    judged = {name: rows for name, rows in found.items() if judge in rows}
    ranked = []
    for figure, row in ROWS.items():
        both = [(rows[figure], rows[judge]) for rows in judged.values() if figure in rows]
        if figure in JUDGES or len(both) < FEWEST:
            continue
        x, y = np.array(both).T
        sign = 1.0 if row.better == "lower" else -1.0
        rho, interval = float(sign * spearman(x, y)), bootstrap(sign * x, y)
        ranked.append(Agreement(figure, judge, len(both), rho, *interval))
    return sorted(ranked, key=lambda a: -abs(a.rho) if a.rho == a.rho else 0.0)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation of the ranks of x and y (..., N), ties sharing theirs; NaN where all tie."""
    a, b = _ranks(x), _ranks(y)
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.full_like(size, np.nan), where=size > 0)


def bootstrap(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Ends of the 95 % interval of `spearman` over tokenizers drawn again (Efron's percentiles).

    In whatever order they come.
    """
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    draws = np.random.default_rng(0).integers(0, len(x), (NUM_DRAWS, len(x)))
    # in parts, for ranks are N x N comparisons a draw
    found = np.concatenate([spearman(x[d], y[d]) for d in np.array_split(draws, NUM_DRAWS // 100)])
    found = found[np.isfinite(found)]  # draws of one tokenizer alone have no order
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


def _ranks(values: np.ndarray) -> np.ndarray:
    one, other = values[..., :, None], values[..., None, :]
    return (other < one).sum(-1) + ((other == one).sum(-1) + 1) / 2


def _texts(row: Agreement) -> tuple[str, str]:
    if row.rho != row.rho:
        return "–", "the same for all"
    return f"{row.rho:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}"
