"""The numbers of `semvq table`: what `semvq evaluate` says of its runs, and a line for each cell.

A measurement is a file beside the runs. It names the weights it is of, and is made again where
others lie there.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from semvq.assets import tensors_hash
from semvq.config import config_hash, duration_in_images
from semvq.evaluate_command import measure
from semvq.evaluation.versions import commit
from semvq.files import WEIGHTS, read_json, sha256_of, write_atomically
from semvq.grammar import parser
from semvq.recipes.cost import training_images
from semvq.recipes.tables import GENERATED, Cell
from semvq.table_plan import in_order
from semvq.training.recipe import Recipe
from semvq.training.runs import read_recipe

SAMPLES = {"tiny": 231, "mini": 5000, "paper": 50_000}  # tiny: as many as photos are held out
FIGURES = {"rFID": "rfid", "usage": "codebook_usage", "FID": "fid", "IS": "score"}
COLUMNS = (
    "table", "row", "column", "dataset", "scale", "seed", "metric", "value", "published", "run",
    "decoder", "recipe_hash", "commit", "images_seen", "images_seen_before", "network", "weights",
    "device", "semvq", "torch",
)  # fmt: skip


def measure_cells(
    options: Namespace, chosen: list[Cell], seed: int, folder: Path, photos: tuple[Any, Any]
) -> None:
    """What `semvq evaluate` says of the cells' runs in `folder`, as far as it is missing.

    `photos` are training and held-out images.
    """
    # all processes of one table have to find the same files missing: hence before the first is made
    cell_of = {measurement_file(options, cell, folder): cell for cell in chosen}
    missing = [
        (file, cell) for file, cell in cell_of.items() if not _is_current(file, cell, folder)
    ]
    for file, cell in missing:
        words = _evaluation(options, cell, seed, folder, photos)
        found = measure(parser().parse_args(words))
        if found is not None:
            # the commit of the measurement: a run may have gone on over several
            kept = found | {"commit": commit()}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(kept, indent=1) + "\n")


def statistics_file(options: Namespace, cell: Cell, place: Path) -> Path:
    """Where statistics of the training images are kept; `place` holds the folders of the seeds."""
    return place / f"{cell.dataset}-{options.network}.npz"


def record(options: Namespace, cell: Cell, seed: int, folder: Path) -> dict[str, Any]:
    """A line for the table of numbers."""
    kept = json.loads(measurement_file(options, cell, folder).read_text())
    recipe = read_recipe(folder / cell.run)
    facts, value = kept["facts"], kept["figures"].get(FIGURES[cell.metric])
    names = [r.name for r in in_order((cell.run, cell.decoder)) if r.name != cell.run]
    return {
        "table": options.table,
        **{name: getattr(cell, name) for name in ("row", "column", "dataset", "metric", "run")},
        "scale": options.scale,
        "seed": seed,
        "value": value,
        "published": cell.published,
        "decoder": cell.decoder,
        "recipe_hash": config_hash(recipe),
        "commit": kept["commit"],
        "images_seen": _images_seen(recipe),
        "images_seen_before": sum(_images_seen(read_recipe(folder / name)) for name in names),
        **{name: facts[name] for name in ("network", "weights", "device", "semvq", "torch")},
    }


def measurement_file(options: Namespace, cell: Cell, folder: Path) -> Path:
    """Where a cell's measurement is kept; cells may share one."""
    name = f"{cell.run}-{options.network}.json"
    if cell.metric in GENERATED:
        name = f"{cell.run}+{cell.decoder or 'own'}-{_num(options)}-{options.network}.json"
    return folder / "measured" / name


def _is_current(file: Path, cell: Cell, folder: Path) -> bool:
    """Whether the file holds a measurement of the weights that lie there now."""
    if not file.exists():
        return False
    facts, run = read_json(file)["facts"], folder / cell.run
    own = read_recipe(run).upstream if cell.metric in GENERATED else cell.run
    drawn_by = folder / str(cell.decoder or own)
    return (
        facts.get("model") == sha256_of(run / WEIGHTS)
        and facts.get("tokenizer") == tensors_hash(load_file(drawn_by / WEIGHTS))
    )  # fmt: skip


def _evaluation(
    options: Namespace, cell: Cell, seed: int, folder: Path, photos: tuple[Any, Any]
) -> list[str]:
    """The words of `semvq evaluate`."""
    data, val = photos
    words = ["evaluate", str(folder / cell.run), "--network", options.network]
    words += ["--device", options.device, "--seed", str(seed), "--workers", str(options.workers)]
    if cell.metric not in GENERATED:
        return [*words, "--protocol", "reconstruction", "--data", str(val)]
    statistics = statistics_file(options, cell, folder.parent)
    words += ["--protocol", "generation", "--statistics", str(statistics)]
    words += ["--num", str(_num(options))]
    if not statistics.exists():  # with images come controls, of which one table is enough
        words += ["--data", str(data)]
    return [*words, *(["--decoder", str(folder / cell.decoder)] if cell.decoder else [])]


def _num(options: Namespace) -> int:
    return SAMPLES[options.scale] if options.num is None else options.num


def _images_seen(recipe: Recipe) -> int:
    """By the recipe's length; an epoch is as long as the data set was published."""
    loop = recipe.loop
    return duration_in_images(loop.duration, loop.batch_size, training_images(recipe.name))
