"""Encoding, decoding, and the training steps of both phases."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.case import Case, Row, Setting, counted
from bench.networks import RandomPerceptual
from bench.plain import tokenizer as plain
from bench.plain.training import TokenizerSteps
from bench.tasks import open_tokenizer_task, phase1, phase2, tokenizer
from bench.training import Steps
from semvq.config import to_dict
from semvq.losses.perceptual import LOGIT
from semvq.recipes.describe import describe
from semvq.tokenizer.model import Tokenizer, TokenizerConfig
from semvq.training.distributed import start_engine
from semvq.training.recipe import Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

OPTIMIZER_BYTES = 36  # per weight: AdamW and the average read five fp32 numbers and write four


def encode(setting: Setting) -> Case:
    """Images to codes."""
    model = tokenizer(setting)
    batch, side = setting.pick(64, 8, 8, 2), model.config.resolution
    images = setting.random(batch, 3, side, side)
    weights = plain.weights_of(model)

    def ours() -> Tensor:
        with setting.autocast():
            return model.encode(images)

    def eager() -> Tensor:
        with setting.autocast():
            return plain.encode(weights, images)

    flop, moved = forward_cost(model.config, setting, "encode")
    return Case(
        ours, eager, batch, {"batch": batch, **shape(model)},
        flop * batch, moved * batch, setting.convolution_rate, tolerance=2e-3,
    )  # fmt: skip


def decode(setting: Setting, pairs: int) -> Case:
    """Codes to images, with `pairs` of attention per level."""
    model = tokenizer(setting, pairs)
    batch, heads = setting.pick(64, 8, 8, 2), model.config.attention_heads
    codes = setting.integers(model.num_codes, batch, *model.grid)
    weights = plain.weights_of(model)

    def ours() -> Tensor:
        with setting.autocast():
            return model.decode(codes)

    def eager() -> Tensor:
        with setting.autocast():
            return plain.decode(weights, codes, heads)

    flop, moved = forward_cost(model.config, setting, "decode")
    return Case(
        ours, eager, batch, {"batch": batch, **shape(model)},
        flop * batch, moved * batch, setting.convolution_rate,
    )  # fmt: skip


def step(setting: Setting, make: Callable[[Setting], Recipe]) -> Case:
    """Steps of a phase: as many as lie between two R1 penalties, so that one is among them."""
    recipe = make(setting)
    config = recipe.task
    assert isinstance(config, TokenizerTaskConfig) and config.adversarial is not None
    fabric, _ = start_engine(torch.device(setting.device), recipe.loop.precision)
    task = open_tokenizer_task(setting, recipe)
    size, side = recipe.loop.batch_size, config.tokenizer.resolution
    pixels = setting.integers(256, size, 3, side, side).to(torch.uint8)
    theirs = TokenizerSteps(task, recipe.loop.ema_decay, size, setting.autocast)
    steps = Steps(fabric, task, recipe.loop)
    lazy = config.adversarial.r1_weight > 0
    number = config.adversarial.r1_every if lazy else setting.pick(4, 1, 1, 2)

    # Adam's first move is each gradient's sign: in bf16 rounding decides many, and the second steps
    # of two versions part (a tenth at toy size, on a CPU). In fp32 that one is compared too.
    compared = 2 if setting.precision == "fp32" else 1

    def ours() -> Tensor:
        return torch.stack([steps.step({"image": pixels}) for _ in range(number)][:compared])

    def eager() -> Tensor:
        return torch.stack([theirs.step(pixels) for _ in range(number)][:compared])

    flop, moved = step_cost(recipe, setting)
    images = size * number
    return Case(
        ours, eager, images, {"batch": size, "steps": number, **shape(task.tokenizer)},
        flop * images, moved * images, setting.convolution_rate, tolerance=1e-2, trains=True,
    )  # fmt: skip


def shape(model: Tokenizer) -> dict[str, object]:
    """The facts about a tokenizer that decide its speed."""
    keys = ("resolution", "channels", "multipliers", "blocks_per_level", "decoder_attention_pairs")
    found = to_dict(model.config)
    return {key: found[key] for key in keys} | {"num_codes": model.num_codes}


def forward_cost(config: TokenizerConfig, setting: Setting, what: str) -> tuple[float, float]:
    """FLOPs and least bytes per image of "encode" or "decode"; the codes' search is not in it."""
    with torch.device("meta"):
        model = config.build()
        weights = plain.weights_of(model)
        images = torch.empty(1, 3, config.resolution, config.resolution)
        embeddings = torch.empty(1, config.quantizer.code_dim, *model.grid)
    if what == "encode":
        return counted(lambda: plain.latents(weights, images), setting.item_bytes)
    heads = config.attention_heads
    return counted(lambda: plain.images_of(weights, embeddings, heads), setting.item_bytes)


def step_cost(recipe: Recipe, setting: Setting) -> tuple[float, float]:
    """FLOPs and least bytes per image of a training step.

    FLOPs as `semvq describe` counts them, R1 not among them. Bytes: both directions of the
    tokenizer's passes, and the optimiser's numbers; those of losses and discriminator not.
    """
    config = recipe.task
    assert isinstance(config, TokenizerTaskConfig)
    facts = describe(recipe)
    looked, _ = perceptual_cost(config, setting)
    flop = facts["training_gflop_per_image"] * 1e9 + 3 * looked
    passes = [forward_cost(config.tokenizer, setting, what)[1] for what in ("encode", "decode")]
    trained = 1 if config.freeze_code_space else 3
    moved = passes[0] * trained + passes[1] * 3
    weights = facts["parameters"]["tokenizer"] + facts["parameters"].get("discriminator", 0)
    return flop, moved + OPTIMIZER_BYTES * weights / recipe.loop.batch_size


def perceptual_cost(config: TokenizerTaskConfig, setting: Setting) -> tuple[float, float]:
    """FLOPs and bytes of the perceptual networks' forward pass for one image."""
    assert isinstance(config.perceptual, RandomPerceptual)
    side = config.tokenizer.resolution
    with torch.device("meta"):
        loss = config.perceptual.load()
        images = torch.empty(1, 3, side, side)
        seen = torch.empty(1, 3, *[config.perceptual.logits_size or side] * 2)

    def look() -> None:
        if loss.activations and loss.features is not None:
            loss.features(images, loss.activations)
        if LOGIT in loss.layer_weights and loss.classifier is not None:
            loss.classifier(seen)

    return counted(look, setting.item_bytes)


def patchgan(setting: Setting) -> Case:
    """Phase 1 with a PatchGAN and the adaptive weight."""
    return step(setting, partial(phase1, gan="patchgan"))


def stylegan(setting: Setting) -> Case:
    """Phase 1 with the StyleGAN2-type discriminator and lazy R1."""
    return step(setting, partial(phase1, gan="stylegan"))


def second(setting: Setting) -> Case:
    """Phase 2: encoder and codes frozen, decoder with attention."""
    return step(setting, phase2)


ROWS = (
    Row("encode", "images/s", encode, "images to codes"),
    Row("decode", "images/s", partial(decode, pairs=0), "codes to images, baseline decoder"),
    Row("decode-attention", "images/s", partial(decode, pairs=1), "with one pair per level"),
    Row("step-phase1-patchgan", "images/s", patchgan, "training, adaptive GAN weight"),
    Row("step-phase1-stylegan", "images/s", stylegan, "training, lazy R1 spread over its period"),
    Row("step-phase2", "images/s", second, "training, frozen codes, attention decoder"),
)
