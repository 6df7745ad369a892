"""What a recipe will make and cost, found by building it without memory (meta device)."""

from typing import Any

import torch
from torch import nn

from semvq.config import duration_in_images
from semvq.generators.base import GeneratorConfig
from semvq.losses.discriminators import DiscriminatorConfig
from semvq.recipes import find_recipe
from semvq.recipes.cost import (
    DEVICES,
    count_flop,
    count_outputs,
    find_devices,
    once,
    perceptual_flop,
    perceptual_parameters,
    training_images,
)
from semvq.recipes.estimate import memory_facts, network_facts, time_facts
from semvq.tokenizer.model import TokenizerConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.journal import in_words
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

BACKWARD = 3  # a training step costs about three forward passes
# a discriminator's forward passes per image: 2 in the autoencoder's turn (its weights need no
# gradient there), 3 for either of the image and the reconstruction in its own
DISCRIMINATOR = 2 + 3 + 3


def describe(
    recipe: Recipe | str,
    device: str | None = None,
    *,
    epoch_size: int | None = None,
    nodes: int = 1,
) -> dict[str, Any]:
    """Parameters per part, code grid, upstream, images seen, estimated FLOPs; JSON-ready.

    `recipe` may be a name, or FILE.py:FUNCTION. `device` adds estimated hours and memory on one of
    `cost.DEVICES` ("h200") or several of them ("h200x8"), and on so many `nodes` of that kind what
    their network must carry. `epoch_size` counts training images; None
    takes the published size of the paper's data sets. Raises ValueError for an unknown recipe or
    device, or a count below 1.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    devices = None if device is None else find_devices(device)
    if epoch_size is not None and epoch_size < 1:
        raise ValueError(f"epoch_size: expected at least 1, found {epoch_size}")
    facts: dict[str, Any] = {"summary": recipe.summary}
    task = recipe.task
    if isinstance(task, TokenizerTaskConfig):
        facts |= _tokenizer(task)
    elif isinstance(task, GeneratorTaskConfig):
        facts |= _generator(task)
    else:
        raise ValueError(f"{recipe.name}: a {type(task).__name__} cannot be described")
    facts |= _length(recipe, epoch_size or training_images(recipe.name))
    facts |= _work(facts)
    if devices is not None:
        kind, count = devices
        where = f"{count} x {kind.name}"
        facts["device"] = where if nodes == 1 else f"{nodes} nodes of {where}"
        devices = kind, count * nodes
        facts |= time_facts(facts, task, devices)
        facts |= memory_facts(facts, task, recipe.loop, devices)
        facts |= network_facts(facts, recipe.loop, devices[1], nodes)
    facts["published"] = {f"{p.metric} ({p.where})": p.value for p in recipe.published}
    return facts


# what a person reads for each fact, in this order; parameters and published figures have rows each
LABELS = {
    "summary": "trains",
    "resolution": "resolution, px",
    "grid": "codes",
    "classes": "classes",
    "upstream": "starts from",
    "duration": "length",
    "batch_size": "batch size",
    "images_seen": "images seen",
    "encode_gflop_per_image": "encoding, GFLOP an image",
    "decode_gflop_per_image": "decoding, GFLOP an image",
    "training_gflop_per_image": "training, GFLOP an image",
    "perceptual_gflop_per_image": "perceptual loss, GFLOP an image",
    "training_pflop": "whole training, PFLOP",
    "training_note": "",
}
NO_HOURS = ("time", "for an estimate, give --epoch-size, your number of training images")


def rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What `describe` found, as (label, text) for people."""
    facts = facts | {"images_seen": _seen(facts)}
    found = [(label, _text(facts[key])) for key, label in LABELS.items() if key in facts]
    parts = [(f"parameters, {k}", _text(v)) for k, v in facts["parameters"].items()]
    published = [(f"published {k}", _text(v)) for k, v in facts["published"].items()]
    return found[:1] + parts + found[1:] + _time_rows(facts) + _memory_rows(facts) + published


def family_rows(family: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """A row for each of several recipes, by name, and their hours in all."""
    found: list[tuple[str, str]] = []
    for name, facts in family.items():
        words = [f"images seen: {_seen(facts)}"]
        if isinstance(facts.get("hours"), float):
            words.insert(0, _hours(facts["hours"]))
        if "memory_gb" in facts:
            words.append(_memory(facts))
        found += [(name, "; ".join(words)), *_warnings(facts)]
    *_, last = family.values()
    total = hours_in_all(family)
    if total is None:
        return [*found, *(_time_rows(last)[:1] if "hours" not in last else [NO_HOURS])]
    on = f"on {last['device']}, without data loading, encoding and evaluation"
    return [*found, ("in all", f"{_hours(total)} {on}")]


def hours_in_all(family: dict[str, dict[str, Any]]) -> float | None:
    """The sum over several recipes; None where it is not known of each."""
    found = [facts.get("hours") for facts in family.values()]
    known = [hours for hours in found if isinstance(hours, float)]
    return round(sum(known), 3) if len(known) == len(found) else None


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _seen(facts: dict[str, Any]) -> str:
    """Images, and how many passes over the training images they are."""
    if "epochs" not in facts:
        return _text(facts["images_seen"])
    epochs = facts["epochs"]
    passes = f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.3g}"
    unit = "epoch" if passes == "1" else "epochs"
    return f"{facts['images_seen']:,} = {passes} {unit} of {facts['epoch_size']:,} images"


def _hours(hours: float) -> str:
    """Always in hours; in days or minutes beside them where people count in those."""
    number = f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
    words = in_words(hours * 3600)
    return f"{number} hours" if words.endswith("hours") else f"{number} hours ({words})"


def _time_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "hours" not in facts:
        return [("time", f"for an estimate, give --device {', '.join(DEVICES)}, or as in h200x8")]
    if isinstance(facts["hours"], str):
        return [NO_HOURS]
    words = f"{_hours(facts['hours'])} on {facts['device']}"
    return [("time", words), ("", facts["hours_note"])]


def _memory_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "memory_gb" not in facts:
        return []
    note = ("", facts["memory_note"])
    return [("memory of a GPU", _memory(facts)), note, *_network(facts), *_warnings(facts)]


def _network(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "network_gbit" not in facts:
        return []
    words = f"{facts['network_gbit']:.3g} Gbit/s and more into each node and out of it"
    return [("network", words), ("", facts["network_note"])]


def _memory(facts: dict[str, Any]) -> str:
    return f"{facts['memory_gb']:.1f} of {facts['memory_of_gb']:g} GB"


def _warnings(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [("warning", line) for line in facts.get("warnings", ())]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def _state_bytes(module: nn.Module, averaged: bool = True) -> int:
    """fp32 weights and, of those that train, gradient, two moments of AdamW and the average."""
    return 4 * count_parameters(module) + (4 if averaged else 3) * _gradient_bytes(module)


def _gradient_bytes(module: nn.Module) -> int:
    return 4 * sum(p.numel() for p in module.parameters() if p.requires_grad)


def _tokenizer(task: TokenizerTaskConfig) -> dict[str, Any]:
    discriminator = task.adversarial and task.adversarial.discriminator
    facts = once(_networks, task.tokenizer, discriminator, task.freeze_code_space)
    return facts | {
        "perceptual_gflop_per_image": _giga(
            perceptual_flop(task.perceptual, task.tokenizer.resolution)
        ),
        "state_bytes": facts["state_bytes"] + 4 * perceptual_parameters(task.perceptual),
    }


def _networks(
    config: TokenizerConfig, discriminator: DiscriminatorConfig | None, frozen: bool
) -> dict[str, Any]:
    """Facts of a tokenizer with its discriminator; `frozen`, its encoder and codes do not train."""
    with torch.device("meta"):
        model = config.build()
        side = config.resolution
        images = torch.empty(1, 3, side, side)
        rows = columns = side // config.factor  # not the grid's, of several codes per place
        latents = torch.empty(1, model.quantizer.code_dim, rows, columns)
        gan = discriminator and discriminator.build(side)
    outputs = count_outputs(model.decoder, latents)
    if frozen:
        model.freeze_code_space()
    else:
        outputs += count_outputs(model.encoder, images)
    state = _state_bytes(model)
    encode, decode = count_flop(model.encoder, images), count_flop(model.decoder, latents)
    trained = decode * BACKWARD + encode * (1 if frozen else BACKWARD)
    trained += count_flop(gan, images) * DISCRIMINATOR if gan else 0
    parts = {"encoder": model.encoder, "codebook": model.quantizer, "decoder": model.decoder}
    counts = {name: count_parameters(part) for name, part in parts.items()}
    counts["tokenizer"] = count_parameters(model)
    if gan:
        counts["discriminator"] = count_parameters(gan)
        state += _state_bytes(gan, averaged=False)
    height, width = model.grid
    num_codes = f"{model.quantizer.num_codes}" if model.quantizer.has_codes else "no codebook"
    return {
        "parameters": counts,
        "resolution": side,
        "grid": f"{height} x {width} = {height * width} codes of {num_codes}",
        "encode_gflop_per_image": _giga(encode),
        "decode_gflop_per_image": _giga(decode),
        "training_gflop_per_image": _giga(trained),
        "state_bytes": state,
        "gradient_bytes": _gradient_bytes(model) + (_gradient_bytes(gan) if gan else 0),
        "layer_outputs_per_image": outputs,
    }


def _generator(task: GeneratorTaskConfig) -> dict[str, Any]:
    note = f"without encoding {task.num_views} views of every image once"
    return once(_transformer, task.generator) | {"training_note": note}


def _transformer(config: GeneratorConfig) -> dict[str, Any]:
    with torch.device("meta"):
        model = config.build().eval()
        codes = torch.zeros(1, config.grid_height * config.grid_width, dtype=torch.int64)
        classes = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    forward = count_flop(model, codes, classes)
    return {
        "parameters": {"transformer": count_parameters(model)},
        "grid": f"{config.grid_height} x {config.grid_width} codes of {config.num_codes}",
        "classes": config.num_classes or "none (unconditional)",
        "training_gflop_per_image": _giga(BACKWARD * forward),
        "state_bytes": _state_bytes(model),
        "gradient_bytes": _gradient_bytes(model),
        "layer_outputs_per_image": count_outputs(model, codes, classes),
    }


def _length(recipe: Recipe, epoch_size: int | None) -> dict[str, Any]:
    """What the run starts from, and how many images it sees if that can be known."""
    loop = recipe.loop
    try:
        seen: int | str = duration_in_images(loop.duration, loop.batch_size, epoch_size)
    except ValueError:
        seen = f"{loop.duration} of your data set"
    known = {} if isinstance(seen, str) or epoch_size is None else {
        "epochs": float(f"{seen / epoch_size:.6g}"), "epoch_size": epoch_size,
    }  # fmt: skip
    return {
        "upstream": recipe.upstream or "none",
        "duration": loop.duration,
        "batch_size": loop.batch_size,
        "images_seen": seen,
        **known,
    }


def _work(facts: dict[str, Any]) -> dict[str, Any]:
    """PFLOPs of the whole run, the perceptual loss included."""
    if isinstance(facts["images_seen"], str):
        return {}
    per_image = facts["training_gflop_per_image"] + facts.get("perceptual_gflop_per_image", 0)
    return {"training_pflop": round(facts["images_seen"] * per_image / 1e6, 3)}


def _giga(flop: float) -> float:
    return round(flop / 1e9, 3)
