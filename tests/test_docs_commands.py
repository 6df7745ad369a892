"""Every block of commands on every page of docs/ runs, in its order; or it says here why not.

Recipes are shrunk as in the smoke tests (`shrinking.py`), photos are toys. A page starts from
finished toy runs of the demo's recipes, and makes anew what it makes itself.
"""

import re
import shlex
import shutil
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semvq import commands
from semvq.cli import main, parser
from semvq.evaluation import features, intervals, side_by_side
from semvq.training.recipe import Recipe
from tests.evaluation_toy import toy_network
from tests.shrinking import shrink
from tests.source_cases import database
from tests.test_docs import ROOT, SHORT
from tests.toy import photos

# Blocks of a page that is named here, or that begin with one of these, do not run here.
ELSEWHERE = {
    "many-gpus.md": "tests/test_processes.py trains and encodes in several processes",
    "semvq correlate": "needs four tokenizers with transformers: tests/test_correlate.py",
    "semvq convert": "needs files of others: tests/test_convert*.py have each format's layout",
    "semvq export runs/fruit_phase2 --to onnx": "tests/test_export.py makes graphs, and runs them",
    "import onnxruntime": "the same",
    "python examples/toy.py": "tests/test_toy.py runs it",
    "from semvq import load_generator, load_tokenizer, push_to_hub": (
        "talks to the hub: tests/test_hub.py has a hub of its own"
    ),
    "semvq table": "minutes a row, or a command's form alone: tests/test_tables.py",
    "python3 -m venv": "what the tests run in: tests/test_docs.py holds it against README's line",
    "pip install 'semvq[serve]'": "tests/test_serve*.py",
    "curl": "asks a running server: tests/test_serve.py asks the same",
    "PHOTOS/a.jpg": "no commands: what folders look like",
    "skipped an unreadable image": "no command: what the terminal says",
}
PAGES = [
    path
    for path in sorted((ROOT / "docs").rglob("*.md"))
    # README has a test of its own (test_docs.py); the others are records, or hold no commands
    if "{include}" not in path.read_text()
]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NARROW = ("task.tokenizer.channels=8", "task.perceptual.logits_size=32")
RECIPES = ("fruit_autoencoder", "fruit_phase1", "fruit_phase2", "fruit_ar", "fruit_nar")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of a page's blocks; what is for Sphinx alone is none."""
    return [b for b in FENCE.findall(page.read_text()) if not b[0].startswith("{")]


def blocks_to_run(page: Path) -> list[tuple[str, str]]:
    if page.name in ELSEWHERE:
        return []
    return [b for b in blocks(page) if not b[1].startswith(tuple(ELSEWHERE))]


def lines(block: str) -> list[str]:
    joined = re.sub(r"\\\n *", "", block)
    return [line for x in joined.splitlines() if (line := x.split("  #")[0].strip())]


def test_every_block_runs_or_says_why_not():
    for page in PAGES:
        for language, text in blocks_to_run(page):
            assert language in ("console", "python"), (page, language, text)
            if language == "console":
                assert all(line.startswith("semvq ") for line in lines(text)), (page, text)
    known = [start for page in PAGES for start in (page.name, *(text for _, text in blocks(page)))]
    for start in ELSEWHERE:
        assert any(text.startswith(start) for text in known), f"nothing begins with {start}"


def test_commands_on_pages_parse():
    commands = [line for page in PAGES for _, text in blocks(page) for line in lines(text)]
    for command in commands:
        if command.startswith("semvq ") and "{" not in command.split("--")[0]:
            parser().parse_args(shlex.split(command)[1:])


def test_the_held_out_photos_are_photos(tmp_path, monkeypatch):
    """Every tenth image, subfolders included; no other file takes the place of one."""
    monkeypatch.chdir(tmp_path)
    names = [f"{c}/{i:02d}.JPG" for c in ("cat", "dog") for i in range(9)]
    names += ["dog/more/18.png", "dog/more/19.png"]
    others = ["cat/.DS_Store", "cat/._00.jpg", "cat/notes.txt", "dog/more/.DS_Store"]
    for name in names + others:
        (tmp_path / "PHOTOS" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "PHOTOS" / name).touch()
    texts = [text for kind, text in blocks(ROOT / "docs" / "your-photos.md") if kind == "python"]
    exec(compile(texts[0], "your-photos.md", "exec"), {})
    held_out = [p for p in Path("HELD_OUT").rglob("*") if p.is_file()]
    assert sorted(map(str, held_out)) == ["HELD_OUT/cat/00.JPG", "HELD_OUT/dog/01.JPG"]
    assert len([p for p in Path("PHOTOS").rglob("*") if p.is_file()]) == len(names + others) - 2


@pytest.fixture(scope="module")
def shrunk() -> Iterator[None]:
    """Trainings of the commands are of two steps, figures of few draws in a toy network."""
    original = commands._recipe

    def small(name: str, options: Namespace) -> Recipe:
        recipe = original(name, options)
        if ".py:" in name:
            return recipe
        return shrink(replace(recipe, loop=replace(recipe.loop, accumulate=1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "_recipe", small)
        patch.setattr(side_by_side, "SMALL_IMAGES", 32)
        patch.setattr(intervals, "NUM_SLOW_DRAWS", 3)
        patch.setitem(features.NETWORKS, "inception", toy_network())
        yield


@pytest.fixture(scope="module")
def workshop(shrunk, tmp_path_factory) -> Path:
    """A folder with what the pages take for granted: photos, and finished runs."""
    place = tmp_path_factory.mktemp("workshop")
    for name, number, seed in (("PHOTOS", 8, 0), ("HELD_OUT", 4, 1)):
        folder = photos(place / name, per_class=number, seed=seed)
        (folder / "red").rename(folder / "Orange")
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(place / "PHOTOS" / "Orange" / "0.png", place / name)
    Image.fromarray(np.eye(20, 24, dtype=np.uint8) * 255).save(place / "mask.png")
    shutil.copytree(place / "PHOTOS" / "blue", place / "FFHQ")
    (place / "ffhqvalidation.txt").write_text("3.png\n")
    shutil.move(database(place), place / "church_outdoor_val_lmdb")
    shutil.copytree(place / "church_outdoor_val_lmdb", place / "church_outdoor_train_lmdb")
    shutil.copytree(ROOT / "examples", place / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for recipe in RECIPES:
            run(f"semvq train {recipe} --data PHOTOS --val HELD_OUT")
    return place


def run(command: str) -> None:
    """One line of a page, with the options that make it short."""
    arguments = shlex.split(command)[1:]
    kind = arguments[0]
    if kind == "train":
        name = arguments[1].split(":")[-1]
        out = arguments[arguments.index("--out") + 1] if "--out" in arguments else f"runs/{name}"
        shutil.rmtree(out, ignore_errors=True)
        if ".py:" in arguments[1]:
            arguments = [re.sub(r"num_classes=\d+", "num_classes=3", a) for a in arguments]
            fields = [*SHORT, *(NARROW if name.endswith("phase1") else ())]
            arguments += [part for field in fields for part in ("--set", field)]
    if kind == "prepare":
        shutil.rmtree(arguments[2], ignore_errors=True)  # pages call several sets SHARDS
        arguments += ["--workers", "0"]
    if kind in ("evaluate", "compare"):
        arguments += ["--num", "24"]
    if kind == "sample":
        arguments = ["24" if a == "500" else a for a in arguments]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("page", list(filter(blocks_to_run, PAGES)), ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page, workshop, tmp_path, monkeypatch):
    shutil.copytree(workshop, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for language, text in blocks_to_run(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), {})
        else:
            for line in lines(text):
                run(line)
