"""What a recipe will make and cost, found by building it without memory (meta device)."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from semvq.config import duration_in_images
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

BACKWARD = 3  # a training step costs about three forward passes


def describe(recipe: Recipe) -> dict[str, Any]:
    """Parameters per part, code grid, upstream, images seen, estimated FLOPs; JSON-ready."""
    facts: dict[str, Any] = {"summary": recipe.summary}
    task = recipe.task
    if isinstance(task, TokenizerTaskConfig):
        facts |= _tokenizer(task)
    elif isinstance(task, GeneratorTaskConfig):
        facts |= _generator(task)
    else:
        raise ValueError(f"{recipe.name}: a {type(task).__name__} cannot be described")
    facts["upstream"] = recipe.upstream or "none"
    facts["duration"] = recipe.loop.duration
    facts["batch_size"] = recipe.loop.batch_size
    try:
        seen = duration_in_images(recipe.loop.duration, recipe.loop.batch_size, None)
        facts["images_seen"] = seen
        facts["training_pflop"] = round(seen * facts["training_gflop_per_image"] / 1e6, 3)
    except ValueError:
        facts["images_seen"] = f"{recipe.loop.duration} of your data set"
    facts["published"] = {f"{p.metric} ({p.where})": p.value for p in recipe.published}
    return facts


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def _tokenizer(task: TokenizerTaskConfig) -> dict[str, Any]:
    with torch.device("meta"):
        model = task.tokenizer.build()
        side = task.tokenizer.resolution
        images = torch.empty(1, 3, side, side)
        gan = task.adversarial and task.adversarial.discriminator.build(side)
    encode = _flops(model.encoder, images)
    decode = _flops(
        model.decoder, torch.empty(1, model.quantizer.code_dim, *model.grid, device="meta")
    )
    trained = decode * BACKWARD + encode * (1 if task.freeze_code_space else BACKWARD)
    # two passes forward and backward: once for either player, on real and reconstructed images
    trained += _flops(gan, images) * 3 * BACKWARD if gan else 0
    parts = {"encoder": model.encoder, "codebook": model.quantizer, "decoder": model.decoder}
    counts = {name: count_parameters(part) for name, part in parts.items()}
    counts["tokenizer"] = count_parameters(model)
    if gan:
        counts["discriminator"] = count_parameters(gan)
    height, width = model.grid
    return {
        "parameters": counts,
        "resolution": side,
        "grid": f"{height} x {width} = {height * width} codes of {model.quantizer.num_codes}",
        "encode_gflop_per_image": round(encode / 1e9, 3),
        "decode_gflop_per_image": round(decode / 1e9, 3),
        "training_gflop_per_image": round(trained / 1e9, 3),
        "training_note": "without the frozen networks of the perceptual loss",
    }


def _generator(task: GeneratorTaskConfig) -> dict[str, Any]:
    config = task.generator
    with torch.device("meta"):
        model = config.build().eval()
        codes = torch.zeros(1, config.grid_height * config.grid_width, dtype=torch.int64)
        classes = torch.zeros(1, dtype=torch.int64) if config.num_classes else None
    forward = _flops(model, codes, classes)
    return {
        "parameters": {"transformer": count_parameters(model)},
        "grid": f"{config.grid_height} x {config.grid_width} codes of {config.num_codes}",
        "classes": config.num_classes or "none (unconditional)",
        "training_gflop_per_image": round(BACKWARD * forward / 1e9, 3),
    }


def _flops(module: nn.Module, *inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()
