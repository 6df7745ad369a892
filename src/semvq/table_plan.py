"""What a table of the paper takes: `semvq table --dry-run`, and the order of its trainings."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from semvq.recipes import find_recipe
from semvq.recipes.describe import describe
from semvq.recipes.tables import TITLES, Cell
from semvq.training.recipe import Recipe

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


def print_plan(options: Namespace, chosen: list[Cell]) -> None:
    """Every cell with its recipe, every recipe with its size and cost, and what all cost."""
    made = needed(chosen)
    facts = {r.name: describe(r, PLANNED_ON[options.scale]) for r in made}
    hours = [f["hours"] for f in facts.values() if not isinstance(f["hours"], str)]
    if options.json:
        recipes = {
            name: {k: f[k] for k in ("parameters", "images_seen", "hours")}
            for name, f in facts.items()
        }
        plan = {"cells": [c._asdict() for c in chosen], "recipes": recipes, "hours": sum(hours)}
        print(json.dumps(plan, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    sheet = Table(TITLES[options.table], "column", "data set", "recipe", "paper", box=None)
    for cell in chosen:
        run = cell.run + (f", drawn by {cell.decoder}" if cell.decoder else "")
        printed = "" if cell.published is None else f"{cell.published:g}"
        sheet.add_row(cell.row, cell.column, cell.dataset, run, printed)
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
        soft_wrap=True,
    )


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
