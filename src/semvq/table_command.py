"""The command `semvq table`: a table of the paper, made of recipes, beside what it printed.

Every run is an ordinary run folder and every measurement a file beside it, so that a table that was
stopped goes on where it was, and tables share what they have in common.
"""

import statistics
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from semvq import assets
from semvq.command_parts import as_csv, is_first_process
from semvq.data.images import ImageSet
from semvq.evaluation.features import check_network
from semvq.evaluation.reference import check_images, load_reference
from semvq.evaluation.sources import FileImages
from semvq.files import write_atomically
from semvq.photos import fruit
from semvq.recipes.tables import GENERATED, TITLES, Cell, cells
from semvq.table_numbers import (
    COLUMNS,
    measure_cells,
    measurement_file,
    record,
    statistics_file,
)
from semvq.table_plan import heading, is_of, needed, print_plan, weights
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.journal import say_progress
from semvq.training.lock import make_folder
from semvq.training.recipe import Recipe
from semvq.training.runs import FINISHED, find_upstream, read_recipe, train_recipe


def table(options: Namespace) -> int:
    """`semvq table`: exit code 128 + signal where a training was stopped."""
    _check_options(options)
    chosen = _chosen(options)
    if options.dry_run:
        print_plan(options, chosen)
        return 0
    photos = _photos(options, chosen)
    _check_found(options, chosen, photos[0])
    if options.csv:
        make_folder(options.csv.parent)
    if is_first_process():
        _fetch_weights(options, chosen)
    found: list[dict[str, Any]] = []
    for seed in options.seeds:
        folder = _folder(options, seed)
        stopped = _train(options, chosen, seed, folder, photos)
        if stopped is not None:
            return 128 + stopped
        measure_cells(options, chosen, seed, folder, photos)
        if is_first_process():
            found += [record(options, cell, seed, folder) for cell in chosen]
    if is_first_process():
        _print(options, chosen, found)
        if options.csv:
            write_atomically(options.csv, as_csv(found, COLUMNS))
    return 0


def _train(
    options: Namespace, chosen: list[Cell], seed: int, folder: Path, photos: tuple[Any, Any]
) -> int | None:
    """Every run that the cells need, as far as it is missing; the signal that stopped one."""
    data, val = photos
    done: list[Recipe] = []
    for recipe in needed(chosen):
        if not is_of(recipe.name, chosen):
            continue  # its images are not these; `_check_found` saw that it is there
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


def _fetch_weights(options: Namespace, chosen: list[Cell]) -> None:
    """Pretrained weights that missing runs and measurements need, before anything is trained."""
    recipes: list[Recipe] = []
    unmeasured: list[Cell] = []
    for seed in options.seeds:
        folder = _folder(options, seed)
        left = {r.name: r for r in needed(chosen) if not (folder / r.name / FINISHED).exists()}
        recipes += [recipe for name, recipe in left.items() if is_of(name, chosen)]
        for cell in chosen:
            there = measurement_file(options, cell, folder).exists()
            if not there or left.keys() & {cell.run, cell.decoder}:
                unmeasured.append(cell)
    for name in weights(recipes, unmeasured, options.network):
        assets.path(name, say_progress)


# --- what was asked for, and what is there; a mistake must not come to light after the trainings --


def _check_options(options: Namespace) -> None:
    """ValueError for values that nothing can be made of."""
    if options.num is not None and options.num < 2:
        raise ValueError(
            "--num: expected at least 2 samples for a distance between distributions, found "
            f"{options.num}"
        )
    if min(options.seeds) < 0:
        raise ValueError(f"--seeds: expected 0 or more, found {min(options.seeds)}")
    if len(set(options.seeds)) < len(options.seeds):
        found = " ".join(map(str, options.seeds))
        raise ValueError(
            f"--seeds: expected different seeds, found {found}; give each of them once"
        )
    check_network(options.network)
    if options.csv and options.csv.is_dir():
        raise ValueError(f"--csv: expected a file to write, found the folder {options.csv}")


def _check_found(options: Namespace, chosen: list[Cell], data: Path) -> None:
    """ValueError or FileNotFoundError where what the folder holds, or lacks, stands in the way."""
    for seed in options.seeds:
        for recipe in needed(chosen):
            if is_of(recipe.name, chosen):
                _check_upstream(recipe, chosen, seed, _folder(options, seed))
    file = statistics_file(options, chosen[0], _folder(options))
    if file.exists() and any(cell.metric in GENERATED for cell in chosen):
        images = FileImages(ImageSet.open(data), side=1)  # of any side: no pixel is looked at
        check_images(load_reference(file), images, file, "give another --out")


def _check_upstream(recipe: Recipe, chosen: list[Cell], seed: int, folder: Path) -> None:
    """FileNotFoundError where a run of other images than `--data` has, to start from, is missing.

    LSUN's tokenizers start from ImageNet's, which no training on LSUN can stand in for.
    """
    start = recipe.upstream
    if start is None or is_of(start, chosen):
        return
    run = folder / start
    try:
        find_upstream(recipe, folder / recipe.name, None)
        read_recipe(run)  # says how many images it has seen
    except FileNotFoundError as error:
        images = start.partition("_")[0].rstrip("0123456789").upper()
        seeded = f" --set loop.seed={seed}" if seed else ""
        raise FileNotFoundError(
            f"{run}: expected a finished run of recipe {start}, which --data with images of "
            f"{chosen[0].dataset} cannot make, found none that is whole; make it with: semvq "
            f"train {start} --data {images} --out {run}{seeded}"
        ) from error


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


def _folder(options: Namespace, seed: int | None = None) -> Path:
    """Of the runs of a seed; without one, of all seeds."""
    folder = options.out or Path("runs") / "tables" / options.scale
    return folder if seed is None else folder / f"seed{seed}"


def _codes_of_another(recipe: Recipe, done: list[Recipe], folder: Path) -> Path | None:
    """The token cache that a transformer of the same codes has left before; None for its own."""
    if isinstance(recipe.task, GeneratorTaskConfig):
        for other in done:
            same = isinstance(other.task, GeneratorTaskConfig) and other.upstream == recipe.upstream
            if same and (folder / other.name / "tokens").exists():
                return folder / other.name / "tokens"
    return None


# --- printing --------------------------------------------------------------------------------


def _print(options: Namespace, chosen: list[Cell], found: list[dict[str, Any]]) -> None:
    """Rows and columns as in the paper: ours, its spread over seeds, what was printed."""
    columns = {cell.column: heading(cell) for cell in chosen}
    sheet = Table(*[TITLES[options.table], *columns.values()], box=None)
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
    notes = [f"{min(values):.4g} to {max(values):.4g}"] * (len(values) > 1)
    notes += [f"{len(values)} of {len(records)} seeds"] * (len(values) < len(records))
    return f"{statistics.mean(values):.4g}" + f" ({', '.join(notes)})" * bool(notes) + printed
