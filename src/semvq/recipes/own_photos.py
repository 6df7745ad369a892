"""For photos of your own: labelled ones at 64 px, unlabelled ones at 128 px, 16 x 16 codes each.

The paper's method at a size for one GPU. **These recipes are ours, not the paper's.** labelled64
was trained for minutes alone (EXPERIMENTS.md, 2026-11-25 and 27; NAR cut short); photos128
and the full lengths have not been measured. Where no scale is involved, settings but the usage
entropy's are the demo's; lengths count images, so that the cost does not depend on how many photos
there are.

    semvq train labelled64_autoencoder --data PHOTOS        # then _phase1, _phase2
    semvq train labelled64_ar --data PHOTOS --set task.generator.num_classes=37
    semvq train photos128_autoencoder --data PHOTOS         # then _phase1, _phase2, _ar, _nar
"""

from dataclasses import replace

from semvq.generators.ar import ARConfig
from semvq.generators.base import GeneratorConfig
from semvq.generators.nar import NARConfig
from semvq.losses.discriminators import PatchGANConfig
from semvq.losses.perceptual import PerceptualConfig
from semvq.recipes.base import (
    SMALL_CODE_DIM,
    SMALL_PERCEPTUAL,
    autoencoder_phase,
    decoder_phase,
    small_phase1,
    small_tokenizer_optim,
    small_transformer_optim,
    tokenizer_task,
)
from semvq.tokenizer.conv import ConvTokenizerConfig
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.loop import LoopConfig
from semvq.training.optim import OptimConfig
from semvq.training.recipe import Recipe

AUTOENCODER, PHASE1, PHASE2, TRANSFORMER = "1M images", "2M images", "1M images", "4M images"
NUM_CLASSES = 100  # of labelled64; yours by --set task.generator.num_classes=N
# at the demo's temperature and weight codes die that entropy does not bring back; these were chosen
# by half trainings of labelled64's shape (EXPERIMENTS.md, 2026-11-27, the miniature's fifth try)
CODES = VectorQuantizerConfig(1024, SMALL_CODE_DIM, entropy_weight=0.6, entropy_temperature=0.03)
TOKENIZER_OPTIM = small_tokenizer_optim(3e-4)
AR_OPTIM, NAR_OPTIM = small_transformer_optim(6e-4), small_transformer_optim(3e-4)
LOOP = LoopConfig(
    duration=PHASE1,
    batch_size=64,
    log_every="0.2% of the run",
    evaluate_every="5% of the run",
    save_every="2% of the run",
)


def labelled64_autoencoder() -> Recipe:
    """What labelled64_phase1 starts from: no codes, L1 alone. Ours."""
    return autoencoder_phase(
        labelled64_phase1(),
        name="labelled64_autoencoder",
        summary="labelled photos, 64 px: an autoencoder without codes to start from",
        duration=AUTOENCODER,
    )


def labelled64_phase1() -> Recipe:
    """Phase 1 at 64 px, f = 4: 16.4M parameters, alpha = 1. Ours."""
    return _phase1(
        "labelled64",
        "labelled photos, 64 px: tokenizer, phase 1 (alpha 1)",
        ConvTokenizerConfig(resolution=64, channels=96, multipliers=(1, 2, 3), quantizer=CODES),
        PatchGANConfig(num_layers=2),
        # EfficientNet-Lite0 is nearly blind at 64 px, and VGG's last map would be 4 x 4 (D12)
        replace(SMALL_PERCEPTUAL, vgg_size=128, logits_size=128),
    )


def labelled64_phase2() -> Recipe:
    """Phase 2 of labelled64: codes frozen, attention decoder, alpha = 0. Ours."""
    return _phase2(
        labelled64_phase1(),
        "labelled64_phase2",
        "labelled photos, 64 px: tokenizer, phase 2 (alpha 0)",
    )


def labelled64_ar() -> Recipe:
    """AR transformer on labelled64's codes, class-conditional. Ours."""
    return _transformer(
        labelled64_phase1(),
        "labelled64_ar",
        "labelled photos, 64 px: AR transformer, 12 x 512",
        _model(ARConfig, NUM_CLASSES),
        AR_OPTIM,
    )


def labelled64_nar() -> Recipe:
    """NAR transformer on labelled64's codes, class-conditional. Ours."""
    return _transformer(
        labelled64_phase1(),
        "labelled64_nar",
        "labelled photos, 64 px: NAR transformer, 12 x 512",
        _model(NARConfig, NUM_CLASSES),
        NAR_OPTIM,
    )


def photos128_autoencoder() -> Recipe:
    """What photos128_phase1 starts from: no codes, L1 alone. Ours, not measured."""
    return autoencoder_phase(
        photos128_phase1(),
        name="photos128_autoencoder",
        summary="any photos, 128 px: an autoencoder without codes to start from",
        duration=AUTOENCODER,
    )


def photos128_phase1() -> Recipe:
    """Phase 1 at 128 px, f = 8: 17.1M parameters, alpha = 1. Ours, not measured."""
    return _phase1(
        "photos128",
        "any photos, 128 px: tokenizer, phase 1 (alpha 1)",
        ConvTokenizerConfig(resolution=128, channels=96, multipliers=(1, 1, 2, 3), quantizer=CODES),
        PatchGANConfig(num_layers=3),
        # the classifier's own size (D12)
        replace(SMALL_PERCEPTUAL, vgg_size=None, logits_size=224),
    )


def photos128_phase2() -> Recipe:
    """Phase 2 of photos128: codes frozen, attention decoder, alpha = 0. Ours, not measured."""
    return _phase2(
        photos128_phase1(),
        "photos128_phase2",
        "any photos, 128 px: tokenizer, phase 2 (alpha 0)",
    )


def photos128_ar() -> Recipe:
    """AR transformer on photos128's codes, unconditional. Ours, not measured."""
    return _transformer(
        photos128_phase1(),
        "photos128_ar",
        "any photos, 128 px: AR transformer, 12 x 512",
        _model(ARConfig),
        AR_OPTIM,
    )


def photos128_nar() -> Recipe:
    """NAR transformer on photos128's codes, unconditional. Ours, not measured."""
    return _transformer(
        photos128_phase1(),
        "photos128_nar",
        "any photos, 128 px: NAR transformer, 12 x 512",
        _model(NARConfig),
        NAR_OPTIM,
    )


def _phase1(
    family: str,
    summary: str,
    tokenizer: ConvTokenizerConfig,
    discriminator: PatchGANConfig,
    perceptual: PerceptualConfig,
) -> Recipe:
    """The demo's losses on other networks."""
    return small_phase1(
        family,
        summary,
        tokenizer=tokenizer,
        discriminator=discriminator,
        discriminator_optim=replace(TOKENIZER_OPTIM, beta1=0.5, clip_norm=None),
        optim=TOKENIZER_OPTIM,
        perceptual=perceptual,
        loop=LOOP,
    )


def _phase2(first: Recipe, name: str, summary: str) -> Recipe:
    return decoder_phase(
        first,
        name=name,
        summary=summary,
        duration=PHASE2,
        learning_rate=TOKENIZER_OPTIM.learning_rate / 2,
        attention_pairs=1,
    )


def _model(kind: type[ARConfig] | type[NARConfig], num_classes: int = 0) -> GeneratorConfig:
    """12 layers of width 512, about 39M parameters; both families have 16 x 16 codes."""
    return kind(
        num_layers=12, width=512, num_heads=8, num_codes=CODES.num_codes, grid_height=16,
        grid_width=16, num_classes=num_classes, conditioning_dropout=0.1 if num_classes else 0.0,
    )  # fmt: skip


def _transformer(
    first: Recipe, name: str, summary: str, model: GeneratorConfig, optim: OptimConfig
) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        task=GeneratorTaskConfig(model, optim, tokenizer_task(first).data, num_views=8),
        loop=replace(LOOP, duration=TRANSFORMER, batch_size=128),
        upstream=first.name,
    )
