"""What recipes share: the paper's lengths, and how one recipe derives from another."""

from dataclasses import replace

from semvq.data.images import DataConfig
from semvq.losses.discriminators import PatchGANConfig
from semvq.losses.perceptual import NO_PERCEPTUAL, PerceptualConfig
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.model import TokenizerConfig
from semvq.tokenizer.quantize import UnquantizedConfig
from semvq.training.adversary import AdversarialConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.loop import LoopConfig
from semvq.training.optim import OptimConfig
from semvq.training.recipe import Published, Recipe
from semvq.training.tokenizer_task import TokenizerTaskConfig

# How long the paper trains (Sec. 4.1 to 4.3).
PHASE1 = "500k steps"
PHASE2 = "200k steps"
LSUN_TOKENIZER = "1 epoch"
TRANSFORMER_UNCONDITIONAL = "500k steps"
TRANSFORMER_IMAGENET = "300 epochs"
# Not in the paper: its ablations were shorter than its tables of results; a fifth is assumed (D15).
ABLATION_TOKENIZER = "100k steps"
ABLATION_TRANSFORMER = "60 epochs"
ABLATION_TRANSFORMER_2X = "120 epochs"  # "AR-L-2x" of Table 1

# What the small recipes that are ours share, fruit's and own_photos'; EXPERIMENTS.md says why.
SMALL_CODE_DIM = 8
SMALL_PERCEPTUAL = PerceptualConfig(
    alpha=1.0, form="balanced", weight=0.4, logits_from="efficientnet-lite0"
)


def small_phase1(
    family: str,
    summary: str,
    *,
    tokenizer: TokenizerConfig,
    discriminator: PatchGANConfig,
    discriminator_optim: OptimConfig,
    optim: OptimConfig,
    perceptual: PerceptualConfig,
    loop: LoopConfig,
) -> Recipe:
    """Phase 1 of a small recipe of ours: balanced perceptual layers, a late and light GAN."""
    return Recipe(
        name=f"{family}_phase1",
        summary=summary,
        task=TokenizerTaskConfig(
            tokenizer=tokenizer,
            data=DataConfig(tokenizer.resolution, min_crop=0.8, random_position=True, flip=True),
            l1_weight=3.0,
            optim=optim,
            perceptual=perceptual,
            adversarial=AdversarialConfig(
                discriminator=discriminator,
                optim=discriminator_optim,
                objective="hinge",
                weight=0.05,
                adaptive=True,
                start="60% of the run",
                warmup="10% of the run",
                ramp="10% of the run",
            ),
        ),
        loop=loop,
        upstream=f"{family}_autoencoder",
    )


def small_tokenizer_optim(learning_rate: float) -> OptimConfig:
    """The autoencoder's optimiser in a small recipe of ours."""
    return OptimConfig(learning_rate, warmup="2% of the run", schedule="cosine", clip_norm=1.0)


def small_transformer_optim(learning_rate: float) -> OptimConfig:
    """A transformer's optimiser in a small recipe of ours.

    NAR takes half of AR's rate: layer norm after the residual sum bears half of what it bears
    before.
    """
    return OptimConfig(
        learning_rate,
        beta2=0.95,
        weight_decay=0.05,
        warmup="10% of the run",
        schedule="cosine",
        clip_norm=1.0,
    )


def autoencoder_phase(first: Recipe, *, name: str, summary: str, duration: str) -> Recipe:
    """What the phase 1 `first` may start from: its network without quantization, under L1 alone.

    The codebook then starts from latents that know colour, and an image costs much less than in
    phase 1 (EXPERIMENTS.md, 2026-11-25).
    """
    task = tokenizer_task(first)
    plain = UnquantizedConfig(code_dim=task.tokenizer.quantizer.code_dim)
    return replace(
        first,
        name=name,
        summary=summary,
        task=replace(
            task,
            tokenizer=replace(task.tokenizer, quantizer=plain),
            perceptual=NO_PERCEPTUAL,
            adversarial=None,
        ),
        loop=replace(first.loop, duration=duration),
        upstream=None,
        published=(),
    )


def decoder_phase(
    first: Recipe,
    *,
    name: str,
    summary: str,
    duration: str,
    learning_rate: float,
    attention_pairs: int,
    published: tuple[Published, ...] = (),
) -> Recipe:
    """Phase 2 of the tokenizer `first` trained (Sec. 3.4).

    The code space is frozen, the decoder gets `attention_pairs` per level (0 is the control), and
    alpha is 0. The discriminator is phase 1's, so it acts from the start (D13).
    """
    task = tokenizer_task(first)
    networks = task.tokenizer
    assert isinstance(networks, ConvTokenizerConfig), "attention goes into the paper's decoder"
    return Recipe(
        name=name,
        summary=summary,
        task=replace(
            task,
            tokenizer=replace(networks, decoder_attention_pairs=attention_pairs),
            optim=replace(task.optim, learning_rate=learning_rate),
            perceptual=replace(task.perceptual, alpha=0.0),
            adversarial=trained_already(task.adversarial),
            freeze_code_space=True,
        ),
        loop=replace(first.loop, duration=duration),
        upstream=first.name,
        published=published,
    )


def trained_already(gan: AdversarialConfig | None) -> AdversarialConfig | None:
    """The same GAN term with the upstream run's discriminator, which acts from the start (D13)."""
    return gan and replace(gan, start="0 steps", warmup="0 steps", ramp="0 steps")


def unconditional(
    conditional: Recipe,
    *,
    name: str,
    summary: str,
    upstream: str,
    data: DataConfig,
    num_views: int,
    fid: float,
) -> Recipe:
    """The transformer of `conditional` without classes, as long as the paper trains it (Sec. 4.2).

    It learns the codes of `upstream` from `num_views` of every image; `fid` is Table 3's.
    """
    task = conditional.task
    assert isinstance(task, GeneratorTaskConfig), "there are no classes in a tokenizer recipe"
    model = replace(task.generator, num_classes=0)
    return replace(
        conditional,
        name=name,
        summary=summary,
        task=replace(task, generator=model, data=data, num_views=num_views),
        loop=replace(conditional.loop, duration=TRANSFORMER_UNCONDITIONAL),
        upstream=upstream,
        published=(Published("FID", fid, "Table 3"),),
    )


def decoder_fids(*, ar: float | None = None, nar: float) -> tuple[Published, ...]:
    """FID of the transformers' samples when this phase's decoder draws them; None: not printed."""
    found = {"AR FID with this phase's decoder": ar, "NAR FID with this phase's decoder": nar}
    return tuple(Published(n, v, "Fig. 8b") for n, v in found.items() if v is not None)


def tokenizer_task(recipe: Recipe) -> TokenizerTaskConfig:
    """The task of a tokenizer's recipe."""
    assert isinstance(recipe.task, TokenizerTaskConfig), "expected the recipe of a tokenizer"
    return recipe.task
