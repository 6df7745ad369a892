"""All recipes by name: functions without arguments that return a frozen `Recipe`."""

import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import ModuleType

from semvq.config import Config, unknown
from semvq.recipes import tables
from semvq.recipes.named import RECIPES as RECIPES
from semvq.training.recipe import Recipe

MAX_NAMED = 4  # recipes that a mistyped name may have meant


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`, or `FILE.py:FUNCTION` for one of your own.

    Raises ValueError with the nearest names, or what your function raised and in which line.
    """
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        module = import_file(Path(file))
        make = getattr(module, function, None)
        if not callable(make):
            raise ValueError(f"{file}: expected a function '{function}', found none")
        try:
            recipe = make()
        except Exception as error:  # whatever a stranger's function may raise
            raise ValueError(_failed(file, function, error)) from error
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name}: expected a Recipe, found {type(recipe).__name__}")
        return recipe
    known = {make.__name__: make for make in RECIPES}
    if name not in known:
        cells = tables.table_recipes()
        if name in cells:
            return cells[name]
        raise ValueError(
            f"expected a recipe, found '{name}'{_nearest(name, known) or _nearest(name, cells)}; "
            "see `semvq recipes`, `semvq table N --scale S --dry-run`, or give your own as "
            "FILE.py:FUNCTION"
        )
    return known[name]()


def _nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'X' or 'Y'?)" for a few; nothing where none is close."""
    close = [f"'{n}'" for n in difflib.get_close_matches(name, list(known), n=MAX_NAMED)]
    words = " or ".join([", ".join(close[:-1]), *close[-1:]] if len(close) > 1 else close)
    return f" (did you mean {words}?)" if close else ""


def _failed(file: str, function: str, error: Exception) -> str:
    """What a user's recipe function raised and where; for an unknown field, which ones there are.

    The line is the last one in that file, not the library's below it.
    """
    path = str(Path(file).resolve())
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f" in line {lines[-1]}" if lines else ""
    field = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    known = ""
    if field and (config := _config_classes().get(field[1])):
        known = "; " + unknown("field", field[2], [f.name for f in fields(config)])
    kind = type(error).__name__
    return f"{file}: expected a recipe from {function}(), found {kind}{where}: {error}{known}"


def _config_classes(base: type[Config] = Config) -> dict[str, type[Config]]:
    found = {base.__name__: base}
    for child in base.__subclasses__():
        found |= _config_classes(child)
    return found


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
