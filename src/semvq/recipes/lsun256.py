"""The paper's LSUN 256x256 paths: church, cat and bedroom, a tokenizer, phase 2, AR and NAR each.

The tokenizer is ImageNet's, tuned for one epoch (Sec. 4.1); the rest is as for ImageNet, without
classes (Sec. 4.2). The three differ in nothing but their images and the figures that the paper
printed. Centre crops are RQ-VAE's, whom the paper follows here; the mirror images are ours, because
500k iterations see a church a thousand times. Not trained by us yet.
"""

from dataclasses import replace
from typing import Literal

from semvq.data.images import DataConfig
from semvq.recipes.base import (
    LSUN_TOKENIZER,
    PHASE2,
    decoder_fids,
    decoder_phase,
    tokenizer_task,
    trained_already,
    unconditional,
)
from semvq.recipes.imagenet256 import imagenet256_ar, imagenet256_nar, imagenet256_phase1
from semvq.training.recipe import Recipe

Scene = Literal["church", "cat", "bedroom"]

# LSUN has no held-out cats, and one epoch should see nearly all of them
DATA = DataConfig(resolution=256, flip=True, val_share=0.01)
# one epoch of churches is 490 steps: ImageNet's 5,000 steps of warm-up would never end
WARMUP = "2% of the run"


def lsun_church256_tokenizer() -> Recipe:
    """Sec. 4.1: the ImageNet tokenizer of phase 1, tuned for one epoch on churches."""
    return _tokenizer("church", ar_fid=3.49, nar_fid=3.41)


def lsun_church256_phase2() -> Recipe:
    """Sec. 4.1, phase 2 on churches: frozen codes, attention decoder, alpha = 0."""
    return _phase2(lsun_church256_tokenizer(), "church", ar_fid=2.45, nar_fid=2.25)


def lsun_church256_ar() -> Recipe:
    """Table 3, SeQ-GAN + AR on churches."""
    return _transformer(imagenet256_ar(), "church", "ar", fid=2.45)


def lsun_church256_nar() -> Recipe:
    """Table 3, SeQ-GAN + NAR on churches."""
    return _transformer(imagenet256_nar(), "church", "nar", fid=2.25)


def lsun_cat256_tokenizer() -> Recipe:
    """Sec. 4.1: the ImageNet tokenizer of phase 1, tuned for one epoch on cats."""
    return _tokenizer("cat", ar_fid=4.73, nar_fid=5.22)


def lsun_cat256_phase2() -> Recipe:
    """Sec. 4.1, phase 2 on cats: frozen codes, attention decoder, alpha = 0."""
    return _phase2(lsun_cat256_tokenizer(), "cat", ar_fid=3.61, nar_fid=4.60)


def lsun_cat256_ar() -> Recipe:
    """Table 3, SeQ-GAN + AR on cats."""
    return _transformer(imagenet256_ar(), "cat", "ar", fid=3.61)


def lsun_cat256_nar() -> Recipe:
    """Table 3, SeQ-GAN + NAR on cats."""
    return _transformer(imagenet256_nar(), "cat", "nar", fid=4.60)


def lsun_bedroom256_tokenizer() -> Recipe:
    """Sec. 4.1: the ImageNet tokenizer of phase 1, tuned for one epoch on bedrooms."""
    return _tokenizer("bedroom", ar_fid=2.15, nar_fid=2.88)


def lsun_bedroom256_phase2() -> Recipe:
    """Sec. 4.1, phase 2 on bedrooms: frozen codes, attention decoder, alpha = 0."""
    return _phase2(lsun_bedroom256_tokenizer(), "bedroom", ar_fid=1.44, nar_fid=2.05)


def lsun_bedroom256_ar() -> Recipe:
    """Table 3, SeQ-GAN + AR on bedrooms."""
    return _transformer(imagenet256_ar(), "bedroom", "ar", fid=1.44)


def lsun_bedroom256_nar() -> Recipe:
    """Table 3, SeQ-GAN + NAR on bedrooms."""
    return _transformer(imagenet256_nar(), "bedroom", "nar", fid=2.05)


def _tokenizer(scene: Scene, *, ar_fid: float, nar_fid: float) -> Recipe:
    """Codes, weights and discriminator of the ImageNet run go on, with new optimisers."""
    first = imagenet256_phase1()
    task = tokenizer_task(first)
    assert task.adversarial
    optim = replace(task.optim, warmup=WARMUP)
    gan = replace(task.adversarial, optim=replace(task.adversarial.optim, warmup=WARMUP))
    return replace(
        first,
        name=f"lsun_{scene}256_tokenizer",
        summary=f"LSUN {scene} tokenizer: ImageNet's, tuned for one epoch (alpha 1)",
        task=replace(task, data=DATA, optim=optim, adversarial=trained_already(gan)),
        loop=replace(
            first.loop,
            duration=LSUN_TOKENIZER,
            evaluate_every="20% of the run",
            save_every="10% of the run",
        ),
        upstream=first.name,
        published=decoder_fids(ar=ar_fid, nar=nar_fid),
    )


def _phase2(first: Recipe, scene: Scene, *, ar_fid: float, nar_fid: float) -> Recipe:
    """200k iterations are long again, so the loop reports and saves as ImageNet's does."""
    return decoder_phase(
        replace(first, loop=imagenet256_phase1().loop),
        name=f"lsun_{scene}256_phase2",
        summary=f"LSUN {scene} tokenizer, phase 2: details, decoder only (alpha 0)",
        duration=PHASE2,
        learning_rate=5e-5,
        attention_pairs=1,
        published=decoder_fids(ar=ar_fid, nar=nar_fid),
    )


def _transformer(model: Recipe, scene: Scene, kind: Literal["ar", "nar"], *, fid: float) -> Recipe:
    """24 layers of width 768 on the codes of the tuned tokenizer, 500k iterations."""
    return unconditional(
        model,
        name=f"lsun_{scene}256_{kind}",
        summary=f"LSUN {scene} {kind.upper()} transformer, unconditional, 24 x 768",
        upstream=f"lsun_{scene}256_tokenizer",
        data=DATA,
        num_views=2,  # a centre crop and its mirror image are all there are
        fid=fid,
    )
