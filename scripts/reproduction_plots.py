"""Plots of the miniature, from the files of numbers that its jobs left (`scripts.miniature`):

`python -m scripts.reproduction_plots runs/miniature` writes reproduction-*.png beside them and
prints how well rFID ranks the tokenizers of the first seed as FID of samples does.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from semvq.correlate_command import FEWEST, bootstrap, spearman
from semvq.recipes.tables import ALPHAS

COLOURS = {"AR": "#1f5fa8", "NAR": "#c2571a", "rFID": "#444444"}
KINDS = ("AR", "NAR")


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Every record of the tables, once: tables share runs."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for file in sorted(folder.glob("*.csv")):
        with file.open() as text:
            for record in csv.DictReader(text):
                if record.get("value"):
                    key = [record[k] for k in ("run", "decoder", "metric", "seed")]
                    found[tuple(key)] = record | {"value": float(record["value"])}
    return list(found.values())


def by_run(records: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """(tokenizer, seed): its rFID and the FIDs of the samples that its own decoder drew."""
    found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for record in records:
        run, own = record["run"], not record["decoder"]
        for kind in KINDS:
            if record["metric"] == "FID" and own and run.endswith(f"_{kind.lower()}"):
                found[run.removesuffix(f"_{kind.lower()}"), record["seed"]][kind] = record["value"]
        if record["metric"] == "rFID":
            found[run, record["seed"]]["rFID"] = record["value"]
    return found


def scatter(runs: dict[tuple[str, str], dict[str, float]]) -> Figure:
    """Reconstruction against generation (Fig. 1): dots of seed 0, crosses of others."""
    kinds = [kind for kind in KINDS if any(kind in values for values in runs.values())]
    figure = Figure(figsize=(4.5 * len(kinds), 3.8), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
        points = [(v["rFID"], v[kind], *k) for k, v in runs.items() if {"rFID", kind} <= v.keys()]
        for number, (x, y, run, seed) in enumerate(sorted(points, key=lambda p: (p[3], p[0]))):
            first = seed == "0"
            axes.plot(x, y, "o" if first else "x", color=COLOURS[kind], alpha=0.7)
            place = (4, 3) if number % 2 else (4, -9)  # neighbours' names below and above
            if first:
                axes.annotate(
                    run.split("_", 1)[1], (x, y), fontsize=7, xytext=place,
                    textcoords="offset points",
                )  # fmt: skip
        axes.set(xlabel="rFID", ylabel=f"FID of {kind} samples")
        axes.grid(alpha=0.3)
    return figure


def sweep(runs: dict[tuple[str, str], dict[str, float]]) -> Figure:
    """What the semantic ratio does (Fig. 6): a line through seed 0, crosses of other seeds."""
    kinds = [kind for kind in ("rFID", *KINDS) if any(kind in v for v in runs.values())]
    figure = Figure(figsize=(3.5 * len(kinds), 3.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for (run, seed), values in runs.items():
            variant = run.split("_", 1)[1]
            if variant in ALPHAS and kind in values:
                found[seed].append((ALPHAS[variant], values[kind]))
        for seed, points in found.items():
            style = "o-" if seed == "0" else "x"
            axes.plot(*zip(*sorted(points)), style, color=COLOURS[kind], alpha=0.7)
        label = kind if kind == "rFID" else f"FID of {kind} samples"
        axes.set(xlabel="semantic ratio alpha", ylabel=label)
        axes.grid(alpha=0.3)
    return figure


def agreement(points: list[tuple[float, float]], kind: str) -> str:
    """Rank correlation of rFID with FID of samples, over points of both."""
    x, y = np.array(points).T
    low, high = bootstrap(x, y)
    return (
        f"rFID and FID of {kind} samples, {len(x)} tokenizers of seed 0: rank correlation "
        f"{spearman(x, y):+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"
    )


def main() -> None:
    """Write both."""
    matplotlib.use("Agg")
    folder = Path(sys.argv[1])
    runs = by_run(numbers(folder))
    for name, plot in (("scatter", scatter), ("alpha", sweep)):
        target = folder / f"reproduction-{name}.png"
        plot(runs).savefig(target, dpi=110)
        print(target)
    for kind in KINDS:
        first = [v for (_, seed), v in runs.items() if seed == "0" and {"rFID", kind} <= v.keys()]
        points = [(values["rFID"], values[kind]) for values in first]
        if len(points) >= FEWEST:
            print(agreement(points, kind))


if __name__ == "__main__":
    main()
