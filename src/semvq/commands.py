"""What each command does: load, call the library, write files, print a few lines."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Column, Table

from semvq import assets as weights
from semvq.command_parts import at_least_one, check_classes, import_code, is_first_process, write
from semvq.compare_command import compare as compare
from semvq.config import from_dict, to_dict, with_overrides
from semvq.convert_command import convert as convert
from semvq.correlate_command import correlate as correlate
from semvq.data.images import (
    DataConfig,
    ImageSet,
    eval_batches,
    image_grid,
    load_image,
    open_train_val,
    to_float,
)
from semvq.data.token_facts import read_facts
from semvq.evaluate_command import evaluate as evaluate
from semvq.evaluation.features import strict_fp32
from semvq.export_command import export as export
from semvq.prepare_command import prepare as prepare
from semvq.probe.panels import panel
from semvq.probe.teacher_forcing import predict
from semvq.recipes import RECIPES, find_recipe
from semvq.recipes.describe import describe as describe_recipe
from semvq.recipes.describe import family_rows, hours_in_all, rows
from semvq.runs import open_generator, open_tokenizer
from semvq.sample_commands import check_file
from semvq.sample_commands import edit as edit
from semvq.sample_commands import sample as sample
from semvq.serve.command import serve as serve
from semvq.table_command import table as table
from semvq.training.distributed import join
from semvq.training.generator_task import encode_images
from semvq.training.journal import say_progress
from semvq.training.lock import make_folder
from semvq.training.recipe import Recipe
from semvq.training.runs import one_job, resolve_device, train_recipe

MAX_NAMED = 3  # unreadable files in a line on many of them


def demo(options: Namespace) -> int:
    """`semvq demo`: see `semvq.demo.story`."""
    from semvq.demo.story import run_demo

    return run_demo(options.out, minutes=options.minutes, seed=options.seed, device=options.device)


def train(options: Namespace) -> int:
    """`semvq train`: exit code 128 + signal when stopped early."""
    recipe = _recipe(options.recipe, options)
    folder = options.out or Path("runs") / recipe.name
    stopped = train_recipe(
        recipe,
        folder,
        data=options.data,
        val=options.val,
        tokens=options.tokens,
        upstream=options.upstream,
        num_workers=options.workers,
        tensorboard=options.tensorboard,
        device=options.device,
    )
    if stopped is not None:
        return 128 + stopped
    if is_first_process():
        print(f"finished: {folder}")
    return 0


def _recipe(name: str, options: Namespace) -> Recipe:
    """The recipe of this name, with the command line's `--set`."""
    recipe = with_overrides(find_recipe(name), options.overrides)
    return from_dict(Recipe, to_dict(recipe))  # every value checked against its type


def encode(options: Namespace) -> None:
    """`semvq encode`: write `OUT/train` and `OUT/val`."""
    import_code(options)
    device, world = join(resolve_device(options.device))
    tokenizer = open_tokenizer(options.run, device)
    config = DataConfig(
        resolution=tokenizer.config.resolution, min_crop=0.8, random_position=True, flip=True
    )
    images = open_train_val(options.data, options.val, config)
    lock = options.out.with_name(f".{options.out.name}-lock")  # gone before the cache is used
    with one_job(lock, world, device):
        encode_images(tokenizer, images, options.out, config, options.views, say_progress, world)
    if world.is_writer:
        _say_left_out(options.out)
        print(f"token cache: {options.out} (code space {tokenizer.code_space_hash()[:16]})")


def _say_left_out(cache: Path) -> None:
    """Which unreadable images a token cache is without; nothing where it has them all."""
    bad = [name for part in ("train", "val") for name in read_facts(cache / part)["bad"]]
    if bad:
        more = f"; and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        named = "; ".join(bad[:MAX_NAMED]) + more
        print(f"left out {len(bad)} that cannot be read: {named}", file=sys.stderr)


def reconstruct(options: Namespace) -> None:
    """`semvq reconstruct`: originals above reconstructions, as one PNG."""
    import_code(options)
    device = resolve_device(options.device)
    tokenizer = open_tokenizer(options.run, device)
    config = DataConfig(resolution=tokenizer.config.resolution)
    for path in options.images:
        check_file(path)
    images = torch.stack([load_image(path, config) for path in options.images])
    images = to_float(images).to(device)
    with torch.no_grad():
        reconstruction = tokenizer.decode(tokenizer.encode(images))
    make_folder(options.out.parent)
    write(image_grid(torch.cat([images, reconstruction]), columns=len(images)), options.out)


def probe(options: Namespace) -> None:
    """`semvq probe`: the visualisation pipeline of Sec. 3.2 on some images."""
    import_code(options)
    device = resolve_device(options.device)
    generator, tokenizer, names = open_generator(options.run, options.decoder, device)
    if not generator.causal:
        raise ValueError(
            f"{options.run}: expected an AR run, found a NAR one; its context is not causal"
        )
    at_least_one(num=options.num)
    image_set = ImageSet.open(options.data)
    check_classes(image_set, names, generator.config.num_classes)
    config = DataConfig(resolution=tokenizer.config.resolution)
    batch = next(iter(eval_batches(image_set.spread(options.num), config, options.num)))
    images = to_float(batch["image"]).to(device)
    classes = batch["label"].to(device) if generator.config.num_classes else None
    with torch.no_grad(), strict_fp32():  # the figures that `evaluate --protocol probe` has
        codes = tokenizer.encode(images)
        found = predict(generator, codes, classes)
        sheet = panel(images, tokenizer.decode(codes), tokenizer.decode(found.codes), found)
    make_folder(options.out.parent)
    write(sheet, options.out)
    figures = {
        "top1_accuracy": float(found.correct.float().mean()),
        "cross_entropy": float(found.cross_entropy.mean()),
        "num_images": len(images),
    }
    print(json.dumps(figures) if options.json else _sentence(figures))


def recipes(options: Namespace) -> None:
    """`semvq recipes`: names with one line each; where no person reads, exactly one."""
    console, width = Console(), max(len(make.__name__) for make in RECIPES)
    table = Table(Column("recipe", no_wrap=True), "what it trains", "starts from", box=None)
    for recipe in (make() for make in RECIPES):
        table.add_row(recipe.name, recipe.summary, recipe.upstream or "–")
        if not console.is_terminal:
            start = f"; starts from {recipe.upstream}" if recipe.upstream else ""
            print(f"{recipe.name:<{width}}  {recipe.summary}{start}")
    if console.is_terminal:
        console.print(table)


def describe(options: Namespace) -> None:
    """`semvq describe`: counts and costs, without data or memory; of several recipes, the sum."""
    size, nodes, family = options.epoch_size, options.nodes, {}
    at_least_one(nodes=nodes)
    if nodes > 1 and not options.device:
        raise ValueError("--nodes: expected --device beside it, found none; give one, as h200x8")
    if size is not None:
        at_least_one(epoch_size=size)
    for name in options.recipes:
        recipe = _recipe(name, options)
        family[name] = describe_recipe(recipe, options.device, epoch_size=size, nodes=nodes)
    names, (first, *others) = ", ".join(family), family.values()
    if options.json:
        several = {"recipes": family, "hours_in_all": hours_in_all(family)}
        print(json.dumps(several if others else first, indent=1))
        return
    _two_columns(names if not others else "", family_rows(family) if others else rows(first))


def _two_columns(title: str, found: list[tuple[str, str]]) -> None:
    """A table; where no person reads, a line for each row."""
    console = Console()
    if console.is_terminal:
        table = Table("", title, box=None)
        for row in found:
            table.add_row(*row)
        console.print(table)
        return
    width = max(len(label) for label, _ in found)
    for label, text in [("", title)] * bool(title) + found:
        print(f"{label:<{width}}  {text}")


def assets(options: Namespace) -> None:
    """`semvq assets list|fetch`."""
    if options.action == "fetch":
        from semvq.demo.story import DEMO_ASSETS

        for name in options.names or DEMO_ASSETS:
            print(weights.fetch(name, say_progress))
        return
    table = Table("asset", "MB", "here", "licence", "sources", box=None)
    for asset in weights.ASSETS:
        here = "yes" if weights.is_cached(asset.name) else "no"
        sources = "\n".join(f"{s.describe()}\nsha256 {s.sha256}" for s in asset.sources)
        table.add_row(asset.name, f"{asset.size / 1e6:.0f}", here, asset.licence, sources)
    Console().print(table)


def _sentence(figures: dict) -> str:
    return (
        f"top-1 accuracy {figures['top1_accuracy']:.3f}, cross-entropy "
        f"{figures['cross_entropy']:.3f} nats per code, over {figures['num_images']} images"
    )
