"""Recipes, tasks and models of every size, with random weights and made-up images and codes.

The tasks are the library's own, opened on a folder of noise: what is timed is what users run. On
CUDA they are the paper's ImageNet recipes, at a batch size that fits one GPU.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.case import Setting
from bench.networks import RandomPerceptual
from semvq.data.images import DataConfig, ImageSet
from semvq.data.tokens import write_tokens
from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator, GeneratorConfig
from semvq.generators.nar import NARConfig
from semvq.losses.discriminators import (
    DiscriminatorConfig,
    PatchGANConfig,
    StyleGANDiscriminatorConfig,
)
from semvq.losses.perceptual import PerceptualConfig
from semvq.recipes.base import decoder_phase
from semvq.recipes.imagenet256 import imagenet256_ar, imagenet256_nar, imagenet256_phase1
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.files import save_tokenizer
from semvq.tokenizer.model import Tokenizer
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.adversary import AdversarialConfig
from semvq.training.generator_task import GeneratorTask, GeneratorTaskConfig
from semvq.training.optim import OptimConfig
from semvq.training.recipe import Recipe
from semvq.training.task import Setting as Inputs
from semvq.training.task import Task
from semvq.training.tokenizer_task import TokenizerTask, TokenizerTaskConfig

NUM_FILES = 6  # noise images a task is opened on


def tokenizer_config(setting: Setting, attention_pairs: int = 0) -> ConvTokenizerConfig:
    """The paper's tokenizer (54.5M, with attention 57.9M), or a small one."""
    return ConvTokenizerConfig(
        resolution=setting.pick(256, 64, 32, 16),
        channels=setting.pick(128, 32, 16, 8),
        multipliers=setting.pick((1, 1, 2, 2, 4), (1, 1, 2, 2), (1, 2, 2), (1, 2, 2)),
        blocks_per_level=setting.pick(2, 2, 1, 1),
        middle_blocks=setting.pick(2, 2, 1, 1),
        decoder_attention_pairs=attention_pairs,
        quantizer=VectorQuantizerConfig(
            num_codes=setting.pick(1024, 512, 256, 16), code_dim=setting.pick(256, 64, 32, 8)
        ),
    )


def tokenizer(setting: Setting, attention_pairs: int = 0) -> Tokenizer:
    """A tokenizer whose weights are all away from their start, with codes among its latents."""
    torch.manual_seed(0)
    model = tokenizer_config(setting, attention_pairs).build()
    stir(model)
    model = model.to(setting.device).eval()
    side = model.config.resolution
    with torch.no_grad():
        model.quantizer.initialize(model.latents(setting.random(8, 3, side, side, seed=9)))
    return model


def generator_config(setting: Setting, kind: str, **changes: object) -> GeneratorConfig:
    """The paper's 24 x 768 transformer, or a small one; `kind` is "ar" or "nar"."""
    if setting.scale == "paper":
        recipe = {"ar": imagenet256_ar, "nar": imagenet256_nar}[kind]()
        assert isinstance(recipe.task, GeneratorTaskConfig)
        return replace(recipe.task.generator, **changes)  # type: ignore[arg-type]
    side = setting.pick(16, 8, 6, 4)
    small = {"ar": ARConfig, "nar": NARConfig}[kind](
        num_layers=setting.pick(24, 4, 2, 2),
        width=setting.pick(768, 128, 64, 32),
        num_heads=setting.pick(12, 4, 2, 2),
        num_codes=setting.pick(1024, 256, 128, 16),
        grid_height=side,
        grid_width=side,
        num_classes=10,
    )
    return replace(small, **changes)


def generator(setting: Setting, config: GeneratorConfig) -> Generator:
    """A transformer in the setting's precision, as it would be for sampling."""
    torch.manual_seed(0)
    model = config.build()
    if setting.scale != "paper":
        stir(model, 0.1)  # so that logits matter beside the noise
    return model.to(setting.device, setting.dtype).eval()


@torch.no_grad()
def stir(model: nn.Module, size: float = 0.02) -> None:
    """Move every weight: biases, gains and output projections start where they do nothing."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=size)


# --- recipes ---------------------------------------------------------------------------------


def phase1(setting: Setting, gan: str) -> Recipe:
    """Phase 1 with a "patchgan" (hinge, adaptive weight) or a "stylegan" (logistic, lazy R1)."""
    recipe = imagenet256_phase1()
    assert isinstance(recipe.task, TokenizerTaskConfig)
    config = tokenizer_config(setting)
    perceptual = recipe.task.perceptual
    optim = steady(recipe.task.optim)
    adversarial = recipe.task.adversarial
    assert adversarial is not None
    shared = replace(
        adversarial, optim=steady(adversarial.optim), start="0 steps", warmup="0 steps",
        ramp="0 steps", r1_every=setting.pick(16, 16, 16, 2),
    )  # fmt: skip
    task = replace(
        recipe.task,
        tokenizer=config,
        data=DataConfig(config.resolution, val_share=0.5),
        optim=optim,
        perceptual=random_perceptual(setting, perceptual),
        adversarial=with_discriminator(setting, gan, shared),
    )
    size = setting.pick(32, 8, 4, 4)
    loop = replace(recipe.loop, batch_size=size, duration="1M images", precision=precision(setting))
    return replace(recipe, name=f"bench_{gan}", task=task, loop=loop)


def phase2(setting: Setting) -> Recipe:
    """Phase 2 of the phase 1 with the StyleGAN2-type discriminator: attention, frozen codes."""
    return decoder_phase(
        phase1(setting, "stylegan"), name="bench_phase2", summary="", duration="1M images",
        learning_rate=5e-5, attention_pairs=1,
    )  # fmt: skip


def generator_recipe(setting: Setting, kind: str) -> Recipe:
    """Training of the transformer of `generator_config`."""
    recipe = {"ar": imagenet256_ar, "nar": imagenet256_nar}[kind]()
    assert isinstance(recipe.task, GeneratorTaskConfig)
    config = generator_config(setting, kind)
    data = DataConfig(config.grid_height * setting.pick(16, 4, 4, 4))
    task = replace(
        recipe.task,
        generator=config,
        optim=steady(recipe.task.optim),
        data=data,
    )
    # 128: at 64 a step's kernels take less time than their launches
    size = setting.pick(128, 16, 8, 4)
    loop = replace(recipe.loop, batch_size=size, duration="1M images", precision=precision(setting))
    return replace(recipe, name=f"bench_{kind}", task=task, loop=loop)


def steady(optim: OptimConfig) -> OptimConfig:
    """Without warm-up, in which nothing would move."""
    return replace(optim, warmup="0 steps")


def precision(setting: Setting) -> Literal["fp32", "bf16"]:
    """As the loop calls it."""
    return "bf16" if setting.precision == "bf16" else "fp32"


def random_perceptual(setting: Setting, config: PerceptualConfig) -> RandomPerceptual:
    """The same loss over networks with random weights, small ones for the small sizes."""
    return RandomPerceptual(
        alpha=config.alpha,
        semantic_layers=config.semantic_layers,
        detail_layers=config.detail_layers,
        form=config.form,
        weight=config.weight,
        logits_size=setting.pick(224, 64, 32, 32),
        divide=setting.pick(1, 4, 8, 16),
    )


def with_discriminator(setting: Setting, kind: str, shared: AdversarialConfig) -> AdversarialConfig:
    """The GAN term of one kind of discriminator."""
    if kind == "patchgan":
        patch: DiscriminatorConfig = PatchGANConfig(
            channels=setting.pick(64, 32, 16, 8), num_layers=setting.pick(3, 3, 2, 1)
        )
        return replace(
            shared, discriminator=patch, objective="hinge", weight=0.8, adaptive=True, r1_weight=0.0
        )
    style = StyleGANDiscriminatorConfig()
    if setting.scale != "paper":
        base, most = setting.pick((0, 0), (1024, 64), (256, 32), (64, 8))
        style = replace(style, channel_base=base, max_channels=most)
    return replace(shared, discriminator=style)


# --- tasks on noise --------------------------------------------------------------------------


def noise_images(
    folder: Path, num: int, height: int, width: int, classes: int = 2, kind: str = "png"
) -> Path:
    """`num` images `<class>/<number>.<kind>` of smooth noise, about as large as photos are."""
    rng = np.random.default_rng(0)
    for i in range(num):
        coarse = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
        target = folder / f"c{i % classes}" / f"{i:05d}.{kind}"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(target)
    return folder


def open_task(setting: Setting, recipe: Recipe, folder: Path, upstream: Path | None = None) -> Task:
    """The recipe's task, its data being noise in `folder`."""
    generates = isinstance(recipe.task, GeneratorTaskConfig)
    side = recipe.task.data.resolution  # type: ignore[attr-defined]
    inputs = Inputs(
        folder=folder,
        data=None if generates else noise_images(folder / "train", NUM_FILES, side, side),
        val=None if generates else noise_images(folder / "val", 2, side, side),
        tokens=folder / "tokens" if generates else None,
        upstream=upstream,
        device=torch.device(setting.device),
        seed=0,
        batch_size=recipe.loop.batch_size,
        duration=recipe.loop.duration,
    )
    return recipe.task.open(inputs)


def open_tokenizer_task(setting: Setting, recipe: Recipe) -> TokenizerTask:
    """A task whose tokenizer is away from its start; phase 2 gets its phase 1 as upstream."""
    with tempfile.TemporaryDirectory() as name:
        folder, upstream = Path(name), None
        if recipe.upstream == "bench_stylegan":
            first = open_tokenizer_task(setting, phase1(setting, "stylegan"))
            upstream = folder / "upstream"
            upstream.mkdir()
            first.export(upstream)
        task = open_task(setting, recipe, folder, upstream)
    assert isinstance(task, TokenizerTask)
    stir(task.tokenizer, 0.01)
    side = task.config.tokenizer.resolution
    with torch.no_grad():
        task.tokenizer.quantizer.initialize(
            task.tokenizer.latents(setting.random(8, 3, side, side, seed=9))
        )
    return task


def open_generator_task(setting: Setting, recipe: Recipe) -> GeneratorTask:
    """A task on a cache of random codes, which say that a tokenizer made them."""
    config = recipe.task
    assert isinstance(config, GeneratorTaskConfig)
    model = config.generator
    quantizer = VectorQuantizerConfig(num_codes=model.num_codes, code_dim=8)
    small = ConvTokenizerConfig(
        resolution=config.data.resolution, channels=8, blocks_per_level=1, middle_blocks=0,
        multipliers=(1,) * factor_levels(config.data.resolution // model.grid_height),
        quantizer=quantizer,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = config.data.resolution
        save_tokenizer(upstream := small.build(), folder, {})
        images = noise_images(folder / "images", 2, side, side)
        classes = tuple(f"c{i}" for i in range(model.num_classes))
        for part in ("train", "val"):
            write_tokens(
                folder / "tokens" / part,
                partial(random_codes, config=model),
                ImageSet.open(images, classes),
                config.data,
                num_views=1,
                num_codes=model.num_codes,
                code_space_hash=upstream.code_space_hash(),
            )
        task = open_task(setting, recipe, folder, folder)
    assert isinstance(task, GeneratorTask)
    return task


def random_codes(images: Tensor, config: GeneratorConfig) -> Tensor:
    """Codes (B, h, w), whatever the images."""
    return torch.randint(config.num_codes, (len(images), config.grid_height, config.grid_width))


def factor_levels(factor: int) -> int:
    """Levels of a tokenizer with `factor` pixels per side of a code."""
    return factor.bit_length()
