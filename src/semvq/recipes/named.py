"""The recipes that are functions: the packaged photos', the paper's, and those for your photos.

`tables.py` makes cells of them, so they stand apart from `find_recipe`, which knows those too.
"""

from collections.abc import Callable

from semvq.recipes import ffhq256, fruit, imagenet256, lsun256, own_photos
from semvq.training.recipe import Recipe

RECIPES: tuple[Callable[[], Recipe], ...] = (
    fruit.fruit_autoencoder,
    fruit.fruit_phase1,
    fruit.fruit_phase2,
    fruit.fruit_phase2_control,
    fruit.fruit_ar,
    fruit.fruit_nar,
    imagenet256.imagenet256_phase1,
    imagenet256.imagenet256_phase2,
    imagenet256.imagenet256_ar,
    imagenet256.imagenet256_ar_l,
    imagenet256.imagenet256_nar,
    imagenet256.imagenet256_nar_l,
    ffhq256.ffhq256_phase1,
    ffhq256.ffhq256_phase2,
    ffhq256.ffhq256_nar,
    lsun256.lsun_church256_tokenizer,
    lsun256.lsun_church256_phase2,
    lsun256.lsun_church256_ar,
    lsun256.lsun_church256_nar,
    lsun256.lsun_cat256_tokenizer,
    lsun256.lsun_cat256_phase2,
    lsun256.lsun_cat256_ar,
    lsun256.lsun_cat256_nar,
    lsun256.lsun_bedroom256_tokenizer,
    lsun256.lsun_bedroom256_phase2,
    lsun256.lsun_bedroom256_ar,
    lsun256.lsun_bedroom256_nar,
    own_photos.labelled64_autoencoder,
    own_photos.labelled64_phase1,
    own_photos.labelled64_phase2,
    own_photos.labelled64_ar,
    own_photos.labelled64_nar,
    own_photos.photos128_autoencoder,
    own_photos.photos128_phase1,
    own_photos.photos128_phase2,
    own_photos.photos128_ar,
    own_photos.photos128_nar,
)
