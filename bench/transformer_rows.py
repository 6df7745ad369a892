"""Training steps of the transformers, sampling with and without guidance, and on to pixels."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.case import Case, Row, Setting, counted
from bench.plain import tokenizer as plain_tokenizer
from bench.plain import transformers as plain
from bench.plain.sampling import plain_ar, plain_nar
from bench.plain.tokenizer import Weights, weights_of
from bench.plain.training import GeneratorSteps
from bench.tasks import (
    generator,
    generator_config,
    generator_recipe,
    open_generator_task,
    tokenizer_config,
)
from bench.tokenizer_rows import OPTIMIZER_BYTES, forward_cost
from bench.training import Steps
from semvq.data.images import to_uint8
from semvq.generators.ar import ARConfig
from semvq.generators.base import GeneratorConfig
from semvq.generators.nar import NARConfig
from semvq.generators.noise import Noise
from semvq.tokenizer.model import Tokenizer
from semvq.training.distributed import start_engine

SEED = 7
GUIDANCE = 3.0
NAR_STEPS = 12  # D9
DROPPED = 0.1  # conditioning dropout of a model that can be guided


def step(setting: Setting, kind: str) -> Case:
    """A training step on a batch of codes; dropout is on, and off where results are compared."""
    recipe = generator_recipe(setting, kind)
    fabric, _ = start_engine(torch.device(setting.device), recipe.loop.precision)
    task = open_generator_task(setting, recipe)
    model, config, size = task.generator, task.generator.config, recipe.loop.batch_size
    codes = setting.integers(config.num_codes, size, config.grid_height, config.grid_width)
    labels = setting.integers(config.num_classes, size)

    def loss(w: Weights, drop: float) -> Tensor:
        if isinstance(config, NARConfig):
            return plain.nar_loss(w, config, codes, labels, drop)
        assert isinstance(config, ARConfig)
        return plain.ar_loss(w, config, codes, labels, drop)

    player = task.players[0]
    theirs = GeneratorSteps(model, player.optim, recipe.loop.ema_decay, loss, setting.autocast)
    steps = Steps(fabric, task, recipe.loop)
    batch = {"codes": codes, "label": labels}

    def check() -> tuple[Tensor, Tensor]:
        """Both after as many steps as each other, from the same weights and draws."""
        with torch.no_grad():
            for own, copy in zip(model.parameters(), theirs.w.values(), strict=True):
                copy.copy_(own)
        model.eval()  # without dropout, whose draws depend on the kernel
        found = steps.step(batch)
        torch.manual_seed(torch.initial_seed())  # the draws of that step again
        expected = theirs.step(0.0)
        model.train()
        return found, expected

    flop, moved = forward_cost_of(config, setting)
    size_of = sum(p.numel() for p in model.parameters())
    return Case(
        partial(steps.step, batch),
        partial(theirs.step, config.dropout),
        size,
        {"batch": size, **shape(config)},
        3 * flop * size,
        3 * moved * size + OPTIMIZER_BYTES * size_of,
        setting.precision,
        check=check,
        trains=True,
    )


def sample_ar(setting: Setting, batch: int, guidance: float) -> Case:
    """Codes drawn one position after the other."""
    config = generator_config(setting, "ar", conditioning_dropout=DROPPED if guidance != 1 else 0.0)
    assert isinstance(config, ARConfig)
    batch = setting.pick(batch, batch, batch, min(batch, 3))
    cost = ar_cost(setting, config, batch, 1 if guidance == 1 else 2)
    return sampling(setting, config, batch, guidance, *cost)


def sample_nar(setting: Setting, batch: int, guidance: float) -> Case:
    """Codes refined in a dozen passes."""
    config = generator_config(
        setting, "nar", conditioning_dropout=DROPPED if guidance != 1 else 0.0
    )
    assert isinstance(config, NARConfig)
    batch = setting.pick(batch, batch, batch, min(batch, 3))
    halves = 1 if guidance == 1 else 2
    flop, _ = forward_cost_of(config, setting)
    moved = NAR_STEPS * weight_elements(config) * setting.item_bytes
    return sampling(setting, config, batch, guidance, NAR_STEPS * flop * batch * halves, moved)


def sampling(
    setting: Setting,
    config: GeneratorConfig,
    batch: int,
    guidance: float,
    flop: float,
    moved: float,
) -> Case:
    """`Generator.sample` against a plain loop with the same noise."""
    model = generator(setting, config)
    weights = weights_of(model)
    classes = setting.integers(config.num_classes, batch)
    options: dict[str, Any] = {} if guidance == 1 else {"guidance": guidance}
    return Case(
        lambda: model.sample(batch, classes, SEED, **options),
        lambda: plain_sample(weights, config, classes, guidance),
        batch,
        {"batch": batch, "guidance": guidance, **shape(config)},
        flop,
        moved,
        setting.precision,
        tolerance=0.02,  # a near tie changes all that comes after it
    )


def plain_sample(
    w: Weights, config: GeneratorConfig, classes: Tensor, guidance: float = 1.0
) -> Tensor:
    """Codes (B, h, w) by the plain sampler from the plain transformer."""
    noise = Noise.consecutive(SEED, 0, len(classes), classes.device)
    if isinstance(config, ARConfig):
        codes = plain_ar(
            partial(plain.ar_last, w, config), config, noise, classes, guidance=guidance
        )
    else:
        assert isinstance(config, NARConfig)
        forward = partial(plain.nar_logits, w, config)
        codes = plain_nar(forward, config, noise, classes, guidance=guidance, steps=NAR_STEPS)
    return codes.view(len(classes), config.grid_height, config.grid_width)


def to_pixels(setting: Setting) -> Case:
    """AR samples, decoded and rounded to uint8 on the CPU: what `semvq sample --bf16` does."""
    config = generator_config(setting, "ar")
    assert isinstance(config, ARConfig)
    batch = setting.pick(64, 16, 8, 2)
    model, pictures = generator(setting, config), decoder_of(setting, config)
    labels = setting.integers(config.num_classes, batch)
    weights, their_weights = weights_of(model), weights_of(pictures)
    heads = pictures.config.attention_heads

    def ours() -> Tensor:
        codes = model.sample(batch, labels, SEED)
        with setting.autocast():
            return to_uint8(pictures.decode(codes)).cpu()

    def eager() -> Tensor:
        codes = plain_sample(weights, config, labels)
        with setting.autocast():
            images = plain_tokenizer.decode(their_weights, codes, heads)
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    decoding, moved = forward_cost(pictures.config, setting, "decode")
    drawing, read = ar_cost(setting, config, batch, 1)
    return Case(
        ours, eager, batch,
        {"batch": batch, "resolution": pictures.config.resolution, **shape(config)},
        drawing + decoding * batch, read + moved * batch, setting.convolution_rate,
        tolerance=0.02,
    )  # fmt: skip


def decoder_of(setting: Setting, config: GeneratorConfig) -> Tokenizer:
    """A tokenizer with attention whose codes are this transformer's."""
    whole = tokenizer_config(setting, attention_pairs=1)
    codes = replace(whole.quantizer, num_codes=config.num_codes)
    side = config.grid_height * whole.factor
    torch.manual_seed(1)
    return replace(whole, resolution=side, quantizer=codes).build().to(setting.device).eval()


def ar_cost(setting: Setting, config: ARConfig, batch: int, halves: int) -> tuple[float, float]:
    """FLOPs and least bytes of sampling `batch` images, `halves` being 2 with guidance.

    Every position reads all weights, and the keys and values of those before it.
    """
    flop, _ = forward_cost_of(config, setting)
    kept = config.num_layers * config.width * config.length * (config.length + 1)
    moved = config.length * weight_elements(config) + batch * halves * kept
    return flop * batch * halves, moved * setting.item_bytes


def shape(config: GeneratorConfig) -> dict[str, object]:
    """The facts about a transformer that decide its speed."""
    keys = ("num_layers", "width", "num_heads", "num_codes", "length", "num_classes")
    return {key: getattr(config, key) for key in keys}


def forward_cost_of(config: GeneratorConfig, setting: Setting) -> tuple[float, float]:
    """Of one pass over all positions of one image, logits of the codes included."""
    with torch.device("meta"):
        weights = weights_of(config.build())
        codes = torch.zeros(1, config.length, dtype=torch.int64)
        classes = torch.zeros(1, dtype=torch.int64)
    forward: Callable[..., Tensor] = plain.ar_logits
    if isinstance(config, NARConfig):
        forward = plain.nar_logits
    # the weights are read once a batch, and are no share of an image's bytes
    flop, moved = counted(lambda: forward(weights, config, codes, classes), setting.item_bytes)
    if isinstance(config, ARConfig):
        # the plain version computes the scores of later positions too, and then hides them
        hidden = config.length * (config.length - 1) / 2
        flop -= 4 * config.num_layers * config.width * hidden
    return flop, moved - weight_elements(config) * setting.item_bytes


def weight_elements(config: GeneratorConfig) -> int:
    """Numbers in the weights that a pass over codes reads whole: those of its dense layers."""
    with torch.device("meta"):
        weights = weights_of(config.build())
    layers = sum(w.numel() for n, w in weights.items() if n.startswith(("blocks.", "head.")))
    tied = weights.get("table.weight")
    return layers + (0 if tied is None else tied.numel())


def _sampling_rows() -> tuple[Row, ...]:
    rows = []
    for kind, sample, batches in (("ar", sample_ar, (1, 64, 256)), ("nar", sample_nar, (1, 64))):
        for words, guidance in (("", 1.0), ("-guided", GUIDANCE)):
            for batch in batches:
                build = partial(sample, batch=batch, guidance=guidance)
                about = f"{kind.upper()} codes, {batch} at a time"
                about += f", guidance {guidance:g}" if words else ""
                rows.append(Row(f"sample-{kind}{words}-{batch}", "images/s", build, about))
    return tuple(rows)


ROWS = (
    Row("step-ar", "images/s", partial(step, kind="ar"), "training on codes"),
    Row("step-nar", "images/s", partial(step, kind="nar"), "training on codes"),
    *_sampling_rows(),
    Row("sample-to-pixels", "images/s", to_pixels, "AR codes, attention decoder, uint8"),
)
