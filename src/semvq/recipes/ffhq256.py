"""The paper's FFHQ 256x256 path: tokenizer phases 1 and 2, and NAR (Sec. 4.1, 4.2), as ImageNet's.

No AR: the paper leaves it out, because it overfits on so few images. Held out are the 10,000 images
of the list that VQGAN and RQ-VAE use (`--val`); crops are RQ-VAE's. Not trained by us yet.
"""

from dataclasses import replace

from semvq.data.images import DataConfig
from semvq.recipes.base import PHASE2, decoder_fids, decoder_phase, tokenizer_task, unconditional
from semvq.recipes.imagenet256 import imagenet256_nar, imagenet256_phase1
from semvq.training.recipe import Published, Recipe

# RQ-VAE crops at least 75 % of the area, which is 0.866 of the side
DATA = DataConfig(resolution=256, min_crop=0.866, random_position=True, flip=True)


def ffhq256_phase1() -> Recipe:
    """Sec. 4.1, phase 1 on FFHQ: 500k iterations from nothing, alpha = 1."""
    first = imagenet256_phase1()
    return replace(
        first,
        name="ffhq256_phase1",
        summary="FFHQ tokenizer, phase 1: semantic compression (alpha 1)",
        task=replace(tokenizer_task(first), data=DATA),
        published=(Published("codebook usage", 1.00, "Table 2"), *decoder_fids(nar=3.89)),
    )


def ffhq256_phase2() -> Recipe:
    """Sec. 4.1, phase 2 on FFHQ: frozen codes, attention decoder, alpha = 0, 200k iterations."""
    return decoder_phase(
        ffhq256_phase1(),
        name="ffhq256_phase2",
        summary="FFHQ tokenizer, phase 2: details, decoder only (alpha 0)",
        duration=PHASE2,
        learning_rate=5e-5,
        attention_pairs=1,
        published=(Published("rFID", 3.12, "Table 2"), *decoder_fids(nar=3.62)),
    )


def ffhq256_nar() -> Recipe:
    """Table 3, SeQ-GAN + NAR on FFHQ: 24 layers of width 768, unconditional, 500k iterations."""
    return unconditional(
        imagenet256_nar(),
        name="ffhq256_nar",
        summary="FFHQ NAR transformer, unconditional, 24 x 768",
        upstream="ffhq256_phase1",
        data=DATA,
        num_views=10,
        fid=3.62,
    )
