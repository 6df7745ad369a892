"""A whole family of recipes in a given time: what a few minutes of one device buy.

    python bench/family.py labelled64 --data TRAIN --val VAL --out RUNS --seconds 50 180 50 110 90

For each stage (autoencoder, phase 1, phase 2, AR, NAR) the rate is measured on a few steps in a
throwaway folder, the length is set to what fits into its seconds, and the recipe is trained as
`semvq train` would. Then both transformers are sampled through the phase-2 decoder, and a table
says what came out: `RUNS/family.json`, pictures beside it.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from semvq.data.images import ImageSet, image_grid, open_train_val
from semvq.data.pixels import save_png
from semvq.data.tokens import TokenCache
from semvq.metrics import class_unigram_entropy, unigram_entropy
from semvq.recipes import find_recipe
from semvq.runs import open_generator, open_tokenizer
from semvq.training.generator_task import GeneratorTaskConfig, encode_images
from semvq.training.journal import read_log, say_progress
from semvq.training.recipe import Recipe
from semvq.training.runs import resolve_device, train_recipe

STAGES = ("autoencoder", "phase1", "phase2", "ar", "nar")
TRIAL_STEPS, WARM_STEPS = 40, 10


def main() -> None:
    """See the head of this file."""
    options = parse()
    device = resolve_device(options.device)
    results: dict[str, dict] = {}
    for stage, seconds in zip(STAGES, options.seconds):
        began = time.monotonic()
        recipe = fitted(find_recipe(f"{options.family}_{stage}"), options)
        rate = trial(recipe, options)
        steps = max(2, int(rate * seconds / recipe.loop.batch_size))
        recipe = with_length(recipe, f"{steps * recipe.loop.batch_size} images", quiet=False)
        stopped = run(recipe, options.out / recipe.name, options)
        assert stopped is None, "it was told to stop"
        last = last_figures(options.out / recipe.name)
        results[stage] = {
            "images": steps * recipe.loop.batch_size,
            "images_per_second": round(rate),
            "seconds": round(time.monotonic() - began, 1),
            **last,
        }
        print(stage, json.dumps(results[stage]), flush=True)
        write(options.out, results)
    results["codes"] = bars(options.out / f"{options.family}_ar" / "tokens" / "val")
    for kind in ("ar", "nar"):
        sample(options, kind, device)
    write(options.out, results)
    print(json.dumps(results["codes"]))


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("family", help="labelled64, photos128 or fruit")
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--val", type=Path)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seconds", type=float, nargs=5, required=True, metavar="S")
    p.add_argument("--views", type=int, default=2, help="entries per image in the token cache")
    p.add_argument("--guidance", type=float, default=1.0)
    p.add_argument("--workers", type=int, default=0)
    p.add_argument("--device", default="auto")
    return p.parse_args()


def fitted(recipe: Recipe, options: argparse.Namespace) -> Recipe:
    """The recipe with this script's number of views, and its classes those of the data."""
    if not isinstance(recipe.task, GeneratorTaskConfig):
        return recipe
    task = replace(recipe.task, num_views=options.views)
    if task.generator.num_classes:
        classes = len(ImageSet.open(options.data).classes)
        task = replace(task, generator=replace(task.generator, num_classes=classes))
    return replace(recipe, task=task)


def with_length(recipe: Recipe, duration: str, *, quiet: bool) -> Recipe:
    """The recipe for another length; a quiet one neither judges nor saves on the way."""
    often = "100% of the run" if quiet else "20% of the run"
    loop = replace(
        recipe.loop, duration=duration, evaluate_every=often, save_every=often,
        log_every="1 steps" if quiet else "1% of the run",
    )  # fmt: skip
    return replace(recipe, loop=loop)


def run(recipe: Recipe, folder: Path, options: argparse.Namespace) -> int | None:
    """Train; the NAR transformer reads the token cache that the AR run made."""
    made = options.out / f"{options.family}_ar" / "tokens"
    ours = folder / "tokens"
    is_generator = isinstance(recipe.task, GeneratorTaskConfig)
    return train_recipe(
        recipe,
        folder,
        data=options.data,
        val=options.val,
        tokens=made if is_generator and made.exists() and made != ours else None,
        upstream=options.out / recipe.upstream if recipe.upstream else None,
        num_workers=0 if is_generator else options.workers,
        device=options.device,
    )


def trial(recipe: Recipe, options: argparse.Namespace) -> float:
    """Images per second of the recipe's steps, after the first few.

    A transformer's trial reads the token cache too, which is encoded here if there is none yet.
    """
    if isinstance(recipe.task, GeneratorTaskConfig):
        encode_once(recipe, options)
    folder = options.out / "trial" / recipe.name
    clock = StepClock()
    short = with_length(recipe, f"{TRIAL_STEPS} steps", quiet=True)
    with clock:
        run(short, folder, options)
    return clock.rate(recipe.loop.batch_size)


def encode_once(recipe: Recipe, options: argparse.Namespace) -> None:
    """Make the token cache where the AR run expects its own."""
    folder = options.out / f"{options.family}_ar" / "tokens"
    if folder.exists():
        return
    assert isinstance(recipe.task, GeneratorTaskConfig) and recipe.upstream
    tokenizer = open_tokenizer(options.out / recipe.upstream, resolve_device(options.device))
    images = open_train_val(options.data, options.val, recipe.task.data)
    encode_images(tokenizer, images, folder, recipe.task.data, options.views, say_progress)


class StepClock:
    """Times optimiser steps by looking at when the log grows: every trial step writes a line."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __enter__(self) -> "StepClock":
        from semvq.training import journal

        self._journal, self._log = journal.Journal, journal.Journal.log
        clock = self

        def log(self: journal.Journal, images_seen: int, values: dict[str, float]) -> None:
            clock.times.append(time.monotonic())
            clock._log(self, images_seen, values)

        journal.Journal.log = log  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        self._journal.log = self._log  # type: ignore[method-assign]

    def rate(self, batch_size: int) -> float:
        """Images per second between step `WARM_STEPS` and the last."""
        times = self.times[WARM_STEPS:TRIAL_STEPS]
        return batch_size * (len(times) - 1) / (times[-1] - times[0])


def last_figures(folder: Path) -> dict[str, float]:
    """The last held-out figures of a run's log."""
    lines = [x for x in read_log(folder) if any(k.startswith("val/") for k in x)]
    return {k: round(v, 4) for k, v in lines[-1].items() if k.startswith("val/")}


def bars(cache: Path) -> dict[str, float]:
    """What a model without context can reach on the held-out codes, in nats per code."""
    found = TokenCache.open(cache)
    codes, labels = found.read(range(len(found)))
    return {
        "unigram_entropy": round(unigram_entropy(codes, found.num_codes), 4),
        "class_unigram_entropy": round(class_unigram_entropy(codes, labels, found.num_codes), 4),
        "held_out_images": len(found),
    }


def sample(options: argparse.Namespace, kind: str, device: torch.device) -> None:
    """A sheet of samples through the phase-2 decoder: ten classes in columns, or any sixty."""
    run_folder = options.out / f"{options.family}_{kind}"
    decoder = options.out / f"{options.family}_phase2"
    generator, tokenizer, names = open_generator(run_folder, decoder, device)
    classes = None
    if generator.config.num_classes:
        spread = torch.linspace(0, generator.config.num_classes - 1, 10).long()
        classes = spread.repeat(6).to(device)
        print(kind, "columns:", ", ".join(names[i] for i in spread.tolist()))
    chosen = {"guidance": options.guidance} if classes is not None else {}
    with torch.no_grad():
        codes = generator.sample(60, classes, 0, **chosen)
        images = torch.cat([tokenizer.decode(c).float().cpu() for c in codes.split(20)])
    save_png(image_grid(images, columns=10), options.out / f"samples_{kind}.png")


def write(out: Path, results: dict) -> None:
    """`family.json`, after each stage."""
    facts = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}
    text = json.dumps(facts | {"torch": torch.__version__, "stages": results}, indent=1)
    (out / "family.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
