"""The demo: six trainings, samples, the visualisation, figures and a report, in order.

Every stage is an ordinary run folder, so an interrupted demo goes on where it stopped.
"""

import json
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from semvq import assets
from semvq.demo.figures import collect
from semvq.demo.page import write_page
from semvq.files import write_atomically
from semvq.photos import fruit
from semvq.recipes.fruit import (
    REFERENCE_MINUTES,
    fruit_ar,
    fruit_autoencoder,
    fruit_nar,
    fruit_phase1,
    fruit_phase2,
    fruit_phase2_control,
)
from semvq.training.lock import make_folder
from semvq.training.recipe import Recipe
from semvq.training.runs import train_recipe

SPARSEST = 8  # a demo takes one of 8 photos at least: then every class has one, held out too
DEMO_ASSETS = ("vgg16", "lpips-linear", "efficientnet-lite0", "mobilenet-v2")
FIGURES = "sampling and figures"
STAGES = (
    ("warm-up: an autoencoder without codes", fruit_autoencoder),
    ("tokenizer, phase 1: semantics", fruit_phase1),
    ("tokenizer, phase 2: details", fruit_phase2),
    ("control: phase 2 without attention", fruit_phase2_control),
    ("AR transformer", fruit_ar),
    ("NAR transformer", fruit_nar),
)


def run_demo(out: Path, *, minutes: float, seed: int, device: str) -> int:
    """Train, sample, judge and report into `out`; returns the exit code."""
    if not 0.1 <= minutes <= 100_000:
        raise ValueError(f"--minutes: expected a number from 0.1 up, found {minutes}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: expected a folder to write to, found a file")
    _same_demo(out, minutes=minutes, seed=seed)
    fetch_assets()
    every = sparseness(minutes)
    train_photos, val_photos = some_photos(out, every)
    for number, (title, make) in enumerate(STAGES, 1):
        recipe = scaled(make(), minutes / REFERENCE_MINUTES, seed)
        began = time.monotonic()
        codes = out / "fruit_ar" / "tokens"  # the AR run encodes the photos, the NAR run reads them
        stopped = train_recipe(
            recipe,
            out / recipe.name,
            data=train_photos,
            val=val_photos,
            tokens=codes if make is fruit_nar else None,
            device=device,
            title=f"{number}/{len(STAGES)} {title}",
        )
        _note_time(out, recipe.name, time.monotonic() - began)
        if stopped is not None:
            return 128 + stopped

    began = time.monotonic()
    print("sampling, measuring and drawing …", file=sys.stderr)
    metrics, pictures = collect(out, train_photos, val_photos, seed=seed, sparseness=every)
    metrics |= shortened(metrics, minutes)
    _note_time(out, FIGURES, time.monotonic() - began)
    metrics["seconds"] = _times(out)
    metrics["seed"], metrics["minutes"] = seed, minutes
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    write_page(out, metrics, pictures)
    _say_where_to_look(out)
    return 0


def _same_demo(out: Path, **asked: float) -> None:
    """Note in `out/demo.json` what was asked for; ValueError where another demo lies there."""
    path = out / "demo.json"
    before = json.loads(path.read_text()) if path.exists() else asked
    for name, value in asked.items():
        if before[name] != value:
            raise ValueError(
                f"{out}: expected --{name} {before[name]:g} as at its start, found {value:g}; give "
                "that one to go on, or another --out for another demo"
            )
    make_folder(out)
    write_atomically(path, json.dumps(asked) + "\n")


def scaled(recipe: Recipe, factor: float, seed: int) -> Recipe:
    """`recipe` for `factor` times as many images; shares of the run scale along."""
    number, unit = recipe.loop.duration.split()
    assert unit == "images", "demo recipes count images"
    steps = max(2, round(int(number) * factor / recipe.loop.batch_size))
    duration = f"{steps * recipe.loop.batch_size} images"
    return replace(recipe, loop=replace(recipe.loop, duration=duration, seed=seed))


def sparseness(minutes: float) -> int:
    """Of how many photos and samples a demo takes one; 1 where it keeps its claims.

    What a demo measures does not shorten with its trainings, and would take nearly all the time.
    """
    return max(1, min(SPARSEST, int(REFERENCE_MINUTES / 2 / minutes)))


def some_photos(out: Path, every: int) -> tuple[Path, Path]:
    """The packaged training and held-out photos, or each `every`-th of them, copied to `out`."""
    if every == 1:
        return fruit()
    found = []
    for whole in fruit():
        found.append(out / whole.name)
        with tarfile.open(whole) as source, tarfile.open(found[-1], "w") as target:
            for member in source.getmembers()[::every]:
                target.addfile(member, source.extractfile(member))
    return found[0], found[1]


def shortened(metrics: dict[str, Any], minutes: float) -> dict[str, Any]:
    """What to say instead where a demo was too short for its figures to mean anything."""
    if minutes >= REFERENCE_MINUTES / 2:
        return {}
    every = sparseness(minutes)
    fewer = f", with one of {every} photos and samples" if every > 1 else ""
    return {
        "shortened": (
            f"THIS DEMO WAS SHORTENED, to {minutes:g} of {REFERENCE_MINUTES:g} minutes{fewer}: it "
            "shows that every part runs; its figures, curves and samples show nothing about the "
            "method."
        ),
        "reconstruction": metrics["reconstruction"]
        | {"attention_verdict": "this run is too short to tell"},
    }


def fetch_assets() -> None:
    """Say what is missing and how large it is, then fetch it with a bar for each file."""
    missing = assets.missing(DEMO_ASSETS)
    if not missing:
        return
    total = sum(file.size for file in missing)
    print(
        f"fetching pretrained weights once, {total / 1e6:.0f} MB in {len(missing)} files, "
        f"into {assets.cache_folder()}",
        file=sys.stderr,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns) as progress:
        for file in missing:
            bar = progress.add_task(", ".join(file.assets), total=file.size)

            def move(name: str, done: int, size: int, bar: TaskID = bar) -> None:
                progress.update(bar, completed=done, total=size)

            assets.fetch(file.assets[0], move)


def _times(out: Path) -> dict[str, float]:
    path = out / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _note_time(out: Path, name: str, seconds: float) -> None:
    """Add to a stage's seconds; a part that was killed is not counted. Figures are made anew."""
    times = _times(out)
    before = 0.0 if name == FIGURES else times.get(name, 0.0)
    times[name] = round(before + seconds, 1)
    write_atomically(out / "seconds.json", json.dumps(times, indent=1) + "\n")


def _say_where_to_look(out: Path) -> None:
    photos = fruit()[1]
    print(
        f"\nDone. Open {out / 'report.html'} (figures: {out / 'metrics.json'}).\n"
        "Next:\n"
        f"  semvq sample {out / 'fruit_ar'} --decoder {out / 'fruit_phase2'} --class Granny-Smith\n"
        f"  semvq probe {out / 'fruit_ar'} --decoder {out / 'fruit_phase2'} --data {photos}\n"
        "Your own photos, on a GPU; `semvq describe RECIPE --device rtx4090` says the cost:\n"
        "  semvq train labelled64_autoencoder --data PHOTOS   class folders; then _phase1,\n"
        "                                                     _phase2, _ar and _nar\n"
        "  semvq train photos128_autoencoder --data PHOTOS    no classes; then the same\n"
        "On a laptop, as small as this demo:\n"
        "  semvq train fruit_autoencoder --data PHOTOS        then the same"
    )
