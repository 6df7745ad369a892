"""All recipes by name: functions without arguments that return a frozen `Recipe`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from semvq.config import did_you_mean
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


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`, or `FILE.py:FUNCTION` for one of your own.

    Raises ValueError naming the known recipes.
    """
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        module = import_file(Path(file))
        make = getattr(module, function, None)
        if not callable(make):
            raise ValueError(f"{file}: expected a function '{function}', found none")
        recipe = make()
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name}: expected a Recipe, found {type(recipe).__name__}")
        return recipe
    known = {make.__name__: make for make in RECIPES}
    if name not in known:
        raise ValueError(
            f"expected a recipe among {', '.join(known)}, or FILE.py:FUNCTION; "
            f"found '{name}'{did_you_mean(name, known)}"
        )
    return known[name]()


def import_file(path: Path) -> ModuleType:
    """Import a Python file of the user's, once; its Config classes are then known by name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a Python file, found nothing there")
    name = f"semvq_user_{path.resolve().stem}"
    if name in sys.modules and sys.modules[name].__file__ == str(path.resolve()):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file may raise
        del sys.modules[name]
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"{path}: expected a Python file that can be imported, found "
            f"{type(error).__name__}{where}: {error}"
        ) from error
    return module
