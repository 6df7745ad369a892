"""The command `semvq table`: a table of the paper, made of recipes, beside what it printed.

Every run is an ordinary run folder and every measurement a file beside it, so that a table that was
stopped goes on where it was, and tables share what they have in common.
"""

import json
import statistics
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from semvq.command_parts import as_csv, is_first_process
from semvq.config import config_hash
from semvq.evaluate_command import measure
from semvq.evaluation.versions import commit
from semvq.files import write_atomically
from semvq.grammar import parser
from semvq.photos import fruit
from semvq.recipes.describe import describe
from semvq.recipes.tables import TITLES, Cell, cells
from semvq.table_plan import in_order, print_plan
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.recipe import Recipe
from semvq.training.runs import read_recipe, train_recipe

SAMPLES = {"tiny": 231, "mini": 5000, "paper": 50_000}  # tiny: as many as photos are held out
GENERATED = ("FID", "IS")
FIGURES = {"rFID": "rfid", "usage": "codebook_usage", "FID": "fid", "IS": "score"}
COLUMNS = (
    "table", "row", "column", "dataset", "scale", "seed", "metric", "value", "published", "run",
    "decoder", "recipe_hash", "commit", "images_seen", "network", "weights", "device", "semvq",
    "torch",
)  # fmt: skip


def table(options: Namespace) -> int:
    """`semvq table`: exit code 128 + signal where a training was stopped."""
    chosen = _chosen(options)
    if options.dry_run:
        print_plan(options, chosen)
        return 0
    found: list[dict[str, Any]] = []
    for seed in options.seeds:
        folder = _folder(options) / f"seed{seed}"
        stopped = _train(options, chosen, seed, folder)
        if stopped is not None:
            return 128 + stopped
        _measure(options, chosen, seed, folder)
        if is_first_process():
            found += [_record(options, cell, seed, folder) for cell in chosen]
    if is_first_process():
        _print(options, chosen, found)
        if options.csv:
            write_atomically(options.csv, as_csv(found, COLUMNS))
    return 0


def _train(options: Namespace, chosen: list[Cell], seed: int, folder: Path) -> int | None:
    """Every run that the cells need, as far as it is missing; the signal that stopped one."""
    data, val = _photos(options, chosen)
    done: list[Recipe] = []
    for recipe in in_order(run for cell in chosen for run in (cell.run, cell.decoder)):
        stopped = train_recipe(
            replace(recipe, loop=replace(recipe.loop, seed=seed)),
            folder / recipe.name,
            data=data,
            val=val,
            tokens=_codes_of_another(recipe, done, folder),
            num_workers=options.workers,
            device=options.device,
        )
        if stopped is not None:
            return stopped
        done.append(recipe)
    return None


def _chosen(options: Namespace) -> list[Cell]:
    """The cells that were asked for; ValueError where there are none."""
    found = cells(options.table, options.scale)
    choices = {
        "row": options.rows,
        "column": options.columns,
        "dataset": options.dataset and [options.dataset],
    }
    for name, wanted in choices.items():
        if wanted is None:
            continue
        known = list(dict.fromkeys(getattr(cell, name) for cell in found))
        for one in wanted:
            if one not in known:
                raise ValueError(f"expected a {name} among {', '.join(known)}; found '{one}'")
        found = [cell for cell in found if getattr(cell, name) in wanted]
    if not found:
        raise ValueError(
            f"table {options.table} has no cells at scale {options.scale} that are in all of the "
            "rows, columns and data set asked for"
        )
    return found


def _photos(options: Namespace, chosen: list[Cell]) -> tuple[Any, Any]:
    """Training and held-out images; ValueError where cells need others than one data set."""
    datasets = list(dict.fromkeys(cell.dataset for cell in chosen))
    if len(datasets) > 1:
        raise ValueError(
            f"expected the cells of one data set at a time, found {', '.join(datasets)}; choose "
            "with --dataset and give its images with --data"
        )
    if options.data is None and options.scale == "tiny":
        return fruit()
    for name in ("data", "val"):
        if getattr(options, name) is None:
            what = {"data": "training", "val": "held-out"}[name]
            raise ValueError(f"expected --{name} with {what} images for {datasets[0]}, found none")
    return options.data, options.val


def _folder(options: Namespace) -> Path:
    return options.out or Path("runs") / "tables" / options.scale


def _codes_of_another(recipe: Recipe, done: list[Recipe], folder: Path) -> Path | None:
    """The token cache that a transformer of the same codes has left before; None for its own."""
    if isinstance(recipe.task, GeneratorTaskConfig):
        for other in done:
            same = isinstance(other.task, GeneratorTaskConfig) and other.upstream == recipe.upstream
            if same and (folder / other.name / "tokens").exists():
                return folder / other.name / "tokens"
    return None


# --- measuring -------------------------------------------------------------------------------


def _measure(options: Namespace, chosen: list[Cell], seed: int, folder: Path) -> None:
    """What `semvq evaluate` says of the cells' runs, each kept in a file beside the runs."""
    # all processes of one table have to find the same files missing: hence before the first is made
    cell_of = {_file(options, cell, folder): cell for cell in chosen}
    for file, cell in [pair for pair in cell_of.items() if not pair[0].exists()]:
        found = measure(parser().parse_args(_evaluation(options, cell, seed, folder)))
        if found is not None:
            # the commit of the measurement: a run may have gone on over several
            record = found | {"commit": commit()}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(record, indent=1) + "\n")


def _file(options: Namespace, cell: Cell, folder: Path) -> Path:
    """Where a cell's measurement is kept; cells may share one."""
    name = f"{cell.run}-{options.network}.json"
    if cell.metric in GENERATED:
        num = options.num or SAMPLES[options.scale]
        name = f"{cell.run}+{cell.decoder or 'own'}-{num}-{options.network}.json"
    return folder / "measured" / name


def _evaluation(options: Namespace, cell: Cell, seed: int, folder: Path) -> list[str]:
    """The words of `semvq evaluate`."""
    data, val = _photos(options, [cell])
    words = ["evaluate", str(folder / cell.run), "--network", options.network]
    words += ["--device", options.device, "--seed", str(seed), "--workers", str(options.workers)]
    if cell.metric not in GENERATED:
        return [*words, "--protocol", "reconstruction", "--data", str(val)]
    statistics_file = folder.parent / f"{cell.dataset}-{options.network}.npz"
    words += ["--protocol", "generation", "--statistics", str(statistics_file)]
    words += ["--num", str(options.num or SAMPLES[options.scale])]
    if not statistics_file.exists():  # with images come controls, of which one table is enough
        words += ["--data", str(data)]
    return [*words, *(["--decoder", str(folder / cell.decoder)] if cell.decoder else [])]


def _record(options: Namespace, cell: Cell, seed: int, folder: Path) -> dict[str, Any]:
    """A line for the table of numbers."""
    record = json.loads(_file(options, cell, folder).read_text())
    recipe = read_recipe(folder / cell.run)
    facts, value = record["facts"], record["figures"].get(FIGURES[cell.metric])
    return {
        "table": options.table,
        **{name: getattr(cell, name) for name in ("row", "column", "dataset", "metric", "run")},
        "scale": options.scale,
        "seed": seed,
        "value": value,
        "published": cell.published,
        "decoder": cell.decoder,
        "recipe_hash": config_hash(recipe),
        "commit": record["commit"],
        "images_seen": describe(recipe)["images_seen"],
        **{name: facts[name] for name in ("network", "weights", "device", "semvq", "torch")},
    }


# --- printing --------------------------------------------------------------------------------


def _print(options: Namespace, chosen: list[Cell], found: list[dict[str, Any]]) -> None:
    """Rows and columns as in the paper: ours, its spread over seeds, what was printed."""
    columns = list(dict.fromkeys(cell.column for cell in chosen))
    sheet = Table(*[TITLES[options.table], *columns], box=None)
    for row in dict.fromkeys(cell.row for cell in chosen):
        texts = []
        for column in columns:
            values = [r for r in found if (r["row"], r["column"]) == (row, column)]
            texts.append(_text(values) if values else "")
        sheet.add_row(row, *texts)
    console = Console()
    console.print(sheet)
    several = len(options.seeds) > 1
    seeds = f", mean of {len(options.seeds)} seeds (least to most)" if several else ""
    console.print(
        f"ours at scale {options.scale}{seeds}; in square brackets the paper's, of its own size "
        "and data",
        soft_wrap=True,
        markup=False,
    )


def _text(records: list[dict[str, Any]]) -> str:
    values = [r["value"] for r in records if r["value"] is not None]
    published = records[0]["published"]
    printed = "" if published is None else rf" \[{published:g}]"  # \[ is no markup
    if not values:
        return f"–{printed}"
    text = f"{statistics.mean(values):.4g}"
    if len(values) > 1:
        text += f" ({min(values):.4g} to {max(values):.4g})"
    return text + printed
