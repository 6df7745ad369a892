"""Run folders: what a recipe leaves behind, where its upstream is found, and how it is started.

recipe.json (resolved, hashed) · log.jsonl · checkpoints/ · model.safetensors + config.json ·
samples/ · finished (once it is) · lock (while a job is at work).
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from semvq.config import config_hash, differences, from_dict, to_dict
from semvq.files import read_json, reading, write_atomically
from semvq.training.checkpoint import checkpoints
from semvq.training.distributed import World, start_engine
from semvq.training.identity import AFRESH, Given, check_facts, given_facts
from semvq.training.lock import only_job
from semvq.training.loop import LoopConfig, train
from semvq.training.recipe import Recipe
from semvq.training.task import Setting

FINISHED = "finished"  # in the run's folder: the recipe's hash, and what the run was made of
HEADLINE = ("loss/l1", "psnr", "usage", "loss", "val/psnr", "val/usage", "val/cross_entropy")


def train_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    data: Given = None,
    val: Given = None,
    tokens: Given = None,
    upstream: Given = None,
    num_workers: int = 0,
    tensorboard: bool = False,
    device: str = "auto",
    title: str | None = None,
) -> int | None:
    """Train `recipe` in `folder`, or go on where it stopped; see `loop.train` for the result.

    Raises ValueError or FileNotFoundError with one line: expected, found, what to do.
    """
    if (folder / FINISHED).exists() and (folder / "model.safetensors").exists():
        _check_same(recipe, folder)
        _check_inputs(recipe, folder, data, val, tokens, upstream)
        return None
    found_upstream = find_upstream(recipe, folder, upstream)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder to write to, found a file")
    place = resolve_device(device)
    fabric, world = start_engine(place, _numerics(recipe, place))
    with one_job(folder, world, fabric.device):
        if checkpoints(folder / "checkpoints"):
            _check_same(recipe, folder)
        setting = Setting(
            folder=folder,
            data=data,
            val=val,
            tokens=tokens,
            upstream=found_upstream,
            device=fabric.device,
            world=world,
            seed=recipe.loop.seed,
            batch_size=recipe.loop.batch_size,
            duration=recipe.loop.duration,
            upstream_recipe=str(recipe.upstream),
        )
        task = recipe.task.open(setting)
        if world.is_writer:  # now that the task opens: a mistake must not fix the folder
            _write_recipe(recipe, folder)
        world.wait()
        with _memory_named(recipe.loop, world, folder):
            stopped = train(
                fabric,
                world,
                task,
                recipe.loop,
                folder,
                title=title or recipe.name,
                headline=HEADLINE,
                num_workers=num_workers,
                tensorboard=tensorboard,
            )
        if stopped is None and world.is_writer:
            record = {"recipe": config_hash(recipe), "identity": task.identity()}
            write_atomically(folder / FINISHED, json.dumps(record, indent=1) + "\n")
        world.wait()  # the next recipe of a table starts from this one, in every process
        return stopped


def find_upstream(
    recipe: Recipe, folder: Path, given: Path | None, flag: str = "--upstream"
) -> Path | None:
    """The finished run that `recipe.upstream` names: `given`, or the sibling folder of that name.

    `flag` is the option with which the caller's user names another. Raises FileNotFoundError
    naming the command that makes it.
    """
    if recipe.upstream is None:
        if given is not None:
            raise ValueError(f"{flag}: recipe {recipe.name} starts from nothing, found {given}")
        return None
    run = given or folder.parent / recipe.upstream
    make = f"semvq train {recipe.upstream} --data PATH --out {run}"
    if not (run / "model.safetensors").exists():
        raise FileNotFoundError(
            f"{run}: expected a finished run of recipe {recipe.upstream}, found none; "
            f"make it with: {make}, or point to one with {flag}"
        )
    if (run / "checkpoints").exists() and not (run / FINISHED).exists():
        raise FileNotFoundError(
            f"{run}: expected a finished run, found one that stopped early; go on with: {make}"
        )
    return run


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe a run folder was made with."""
    path = folder / "recipe.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder}: expected a run folder with recipe.json, found none")
    with reading(path):
        record = read_json(path)
        if not isinstance(record, dict) or "recipe" not in record:
            raise ValueError(f"{path}: expected the record of a recipe, found something else")
        return from_dict(Recipe, record["recipe"], str(path))


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not checkpoints(folder / "checkpoints"):
        facts = {"hash": config_hash(recipe), "torch": torch.__version__}
        record = facts | {"recipe": to_dict(recipe)}
        write_atomically(folder / "recipe.json", json.dumps(record, indent=1) + "\n")


def _check_same(recipe: Recipe, folder: Path) -> None:
    before = read_recipe(folder)
    if before != recipe:
        changes = differences(before, recipe)
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise ValueError(
            f"{folder} holds a run of another configuration: {changes[0]}{more}; "
            "give the original one to resume, or another --out to start afresh"
        )


def _check_inputs(
    recipe: Recipe, folder: Path, data: Given, val: Given, tokens: Given, upstream: Given
) -> None:
    """ValueError where a finished run was made of other inputs than are named now.

    Nothing is built for it, and what is not named (but for an upstream run in its usual place) or
    not on record, as in folders of older versions, is not checked.
    """
    known, config = made_of(folder), getattr(recipe.task, "data", None)
    if upstream is not None:
        find_upstream(recipe, folder, upstream)
    elif recipe.upstream and (folder.parent / recipe.upstream / "model.safetensors").exists():
        upstream = folder.parent / recipe.upstream
    if known and config:
        given = given_facts(config, data, val, tokens, upstream)
        check_facts(known, given, f"{folder} is finished, and was made with", AFRESH)


def made_of(folder: Path) -> dict[str, Any]:
    """The facts that a finished run was made of; empty where there is no record of them."""
    try:
        return dict(read_json(folder / FINISHED)["identity"])
    except (ValueError, TypeError, KeyError, OSError):  # none, or a hash alone as of old
        return {}


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here; ValueError where there is no CUDA."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a CUDA device, found none; use --device cpu")
    return torch.device(name)


@contextmanager
def one_job(folder: Path, world: World, device: torch.device) -> Iterator[None]:
    """The writing process holds the folder's lock; if it cannot, all leave."""
    with ExitStack() as stack:
        problem: Exception | None = None
        if world.is_writer:
            try:
                stack.enter_context(only_job(folder))
            except (ValueError, OSError) as error:
                problem = error
        if world.total(torch.tensor(float(problem is not None), device=device)):
            raise problem or ValueError(f"{folder}: process 0 could not start there, and says why")
        yield


@contextmanager
def _memory_named(loop: LoopConfig, world: World, folder: Path) -> Iterator[None]:
    """Turn the device's "out of memory" into a line with a smaller part of the batch to try."""
    try:
        yield
    except RuntimeError as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not out_of_memory:
            raise
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        size = loop.batch_size // (loop.accumulate * world.count)
        smaller = next((n for n in range(size // 2, 0, -1) if size % n == 0), None)
        advice = "a smaller model or resolution"
        if smaller:
            parts = size // smaller * loop.accumulate
            advice = f"the same batch in smaller parts: --set loop.accumulate={parts}"
            if checkpoints(folder / "checkpoints"):
                advice += " with another --out"
        raise ValueError(
            f"out of memory with {size} images at a time"
            + (f" (peak {peak / 2**30:.1f} GiB)" if peak else "")
            + f"; what was saved is whole, try {advice}"
        ) from error


def _numerics(recipe: Recipe, device: torch.device) -> str:
    """The precision the recipe means on this device; deterministic kernels are asked for here."""
    precision: str = recipe.loop.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" else "fp32"
    if recipe.loop.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    return precision
