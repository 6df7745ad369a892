"""What a table of the paper takes: `semvq table --dry-run`, and the order of its trainings."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from semvq import assets
from semvq.recipes import find_recipe
from semvq.recipes.describe import describe
from semvq.recipes.tables import GENERATED, TITLES, Cell
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

PLANNED_ON = {"tiny": "cpu2", "mini": "h200", "paper": "h200"}


def in_order(names: Iterable[str | None]) -> list[Recipe]:
    """The recipes of these names and all they start from, each after its upstream."""
    found: dict[str, Recipe] = {}

    def add(name: str) -> None:
        recipe = find_recipe(name)
        if recipe.upstream:
            add(recipe.upstream)
        found.setdefault(name, recipe)

    for name in names:
        if name is not None:
            add(name)
    return list(found.values())


def needed(chosen: Iterable[Cell]) -> list[Recipe]:
    """All recipes behind these cells, each after its upstream."""
    return in_order(run for cell in chosen for run in (cell.run, cell.decoder))


def weights(recipes: Iterable[Recipe], cells: Iterable[Cell], network: str) -> list[str]:
    """Pretrained weights that these trainings, and measurements of these cells, look through."""
    tasks = [recipe.task for recipe in recipes]
    found = [n for t in tasks if isinstance(t, TokenizerTaskConfig) for n in t.perceptual.assets()]
    for cell in cells:
        found.append(network)
        if cell.metric not in GENERATED:
            found += ["vgg16", "lpips-linear"]  # LPIPS, of every reconstruction
    return list(dict.fromkeys(found))


def print_plan(options: Namespace, chosen: list[Cell]) -> None:
    """Every cell with its recipe, every recipe with its size and cost, and what all cost."""
    behind = needed(chosen)
    made = [recipe for recipe in behind if is_of(recipe.name, chosen)]
    print(f"describing {len(made)} recipes, a second or more for each network", file=sys.stderr)
    facts = {r.name: describe(r, PLANNED_ON[options.scale]) for r in made}
    hours = [f["hours"] for f in facts.values() if not isinstance(f["hours"], str)]
    if options.json:
        recipes = {
            name: {k: f[k] for k in ("parameters", "images_seen", "hours")}
            for name, f in facts.items()
        }
        plan = {
            "cells": [c._asdict() for c in chosen],
            "recipes": recipes,
            "hours": sum(hours),
            "needs": list(_needs(options, behind, chosen)),
        }
        print(json.dumps(plan, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    sheet = Table(TITLES[options.table], "column", "data set", "recipe", "paper", box=None)
    for cell in chosen:
        run = cell.run + (f", drawn by {cell.decoder}" if cell.decoder else "")
        printed = "" if cell.published is None else f"{cell.published:g}"
        sheet.add_row(cell.row, heading(cell), cell.dataset, run, printed)
    console.print(sheet)
    sheet = Table("recipe", "starts from", "parameters", "images", "hours", box=None)
    for recipe in made:
        found = facts[recipe.name]
        parts = found["parameters"]
        size = parts.get("tokenizer", parts.get("transformer"))
        sheet.add_row(
            recipe.name, recipe.upstream or "–", f"{size / 1e6:,.1f}M",
            _number(found["images_seen"]), _number(found["hours"]),
        )  # fmt: skip
    console.print(sheet)
    seeds = len(options.seeds)
    console.print(
        f"{len(made)} trainings for {len(chosen)} cells: {_number(sum(hours))} hours "
        f"({next(iter(facts.values()))['device']}, by `semvq describe`'s arithmetic), times "
        f"{seeds} seed{'s' * (seeds > 1)}; sampling and measuring are not counted",
        "On other devices, and whether it fits: `semvq describe RECIPE… --device h200x8 --nodes 2`",
        *_needs(options, behind, chosen),
        sep="\n",
        soft_wrap=True,
        markup=False,
    )


def heading(cell: Cell) -> str:
    """The column of a cell, with what is measured where the paper's word does not say it."""
    said = cell.metric.lower() in cell.column.lower() or cell.metric in ("rFID", "usage")
    return cell.column if said else f"{cell.column} ({cell.metric})"


def is_of(name: str, chosen: Iterable[Cell]) -> bool:
    """Whether a recipe learns these cells' images: LSUN's tokenizers start from one that does not.

    Where it does not, no table of these cells can make it.
    """
    return name.startswith(tuple(f"{cell.dataset}_" for cell in chosen))


def _needs(options: Namespace, behind: Iterable[Recipe], chosen: list[Cell]) -> Iterator[str]:
    """What has to be there before a table can be made, a line each."""
    datasets = list(dict.fromkeys(cell.dataset for cell in chosen))
    if options.scale != "tiny" and (None in (options.data, options.val) or len(datasets) > 1):
        one = ", one --dataset a call" if len(datasets) > 1 else ""
        yield f"Give the images of {', '.join(datasets)} by --data and --val{one}"
    for recipe in behind:
        if not is_of(recipe.name, chosen):
            yield f"A finished run of {recipe.name} in OUT/seedN: these images cannot make it"
    made = [recipe for recipe in behind if is_of(recipe.name, chosen)]
    if files := assets.missing(weights(made, chosen, options.network)):
        names = " ".join(name for file in files for name in file.assets)
        size = f"{sum(file.size for file in files) / 1e6:,.0f} MB"
        yield f"Pretrained weights ({size}), fetched first or by: semvq assets fetch {names}"
    scored = options.network == "inception" and any(cell.metric == "IS" for cell in chosen)
    if scored and not assets.is_cached("inception-full"):
        yield "IS: `semvq assets fetch inception-full`, or another network by --network"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
