"""Forty and more mistakes of a user: exit code 2, one line, no traceback."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from semvq.cli import main
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_autoencoder, toy_generator, toy_phase1

RECIPE = Path(__file__).parent / "kill_recipes.py"

RAISING = """from dataclasses import replace
from semvq.recipes.fruit import fruit_ar
def deep():
    recipe = fruit_ar()
    model = replace(recipe.task.generator, depth=3)
    return replace(recipe, task=replace(recipe.task, generator=model))
def none():
    share = 0
    return 1 / share
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photos, and one finished run of each kind in `runs`."""
    place = tmp_path_factory.mktemp("mistakes")
    data = photos(place / "photos")
    runs = place / "runs"
    for recipe in (toy_autoencoder(), toy_phase1(), toy_generator("ar"), toy_generator("nar")):
        # a run of another size, too: its grid and code space differ
        assert train_recipe(recipe, runs / recipe.name, data=data) is None
    other = toy_phase1(seed=1)
    assert train_recipe(other, place / "other" / "toy_phase1", data=data) is None
    _spoil(place)
    return place


def _spoil(place: Path) -> None:
    """Things that are not what they seem."""
    (place / "empty").mkdir()
    (place / "file").write_text("a file")
    (place / "text.jpg").write_text("no image")
    (place / "mixed" / "class").mkdir(parents=True)
    image = next((place / "photos" / "red").iterdir())
    for target in ("mixed/loose.png", "mixed/class/a.png", "one.png"):
        shutil.copy(image, place / target)
    for part in ("train", "val"):
        shutil.copytree(place / "photos", place / "split" / part)
    shutil.copytree(place / "photos" / "red", place / "unlabelled")
    shutil.copytree(place / "photos" / "red", place / "purple" / "purple")
    (place / "broken.tar").write_bytes(b"no tar" * 200)
    (place / "recipe.py").write_text("def number():\n    return 3\n")
    (place / "raising.py").write_text(RAISING)
    (place / "syntax.py").write_text("def broken(:\n")
    started = place / "runs" / "started"
    (started / "checkpoints").mkdir(parents=True)
    for name in ("wrong_config", "cut_weights", "pickled"):
        shutil.copytree(place / "runs" / "toy_phase1", place / name)
    config = place / "wrong_config" / "config.json"
    facts = json.loads(config.read_text())
    facts["config"]["chanels"] = 3
    config.write_text(json.dumps(facts))
    with (place / "cut_weights" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    torch.save({"weights": torch.zeros(3)}, place / "pickled" / "model.safetensors")


TRAIN = f"train {RECIPE}:kill_phase1 --out new"
PLACE = "expected a place to write, found: "
DONE = f"train {RECIPE.with_name('toy.py')}:toy_phase1 --out runs/toy_phase1"
AR = f"train {RECIPE}:kill_ar --out new_ar --upstream runs/toy_phase1"
MISTAKES = {
    "no command": ("", "required: COMMAND"),
    "unknown command": ("trian", "invalid choice"),
    "unknown option": (f"{TRAIN} --data photos --epochs 3", "unrecognized arguments"),
    "unknown recipe": ("train fruit_phase7 --data photos", "did you mean 'fruit_phase"),
    "recipe file missing": ("train absent.py:f --data photos", "expected a Python file"),
    "no such function": ("train recipe.py:absent --data photos", "expected a function 'absent'"),
    "no recipe": ("train recipe.py:number --data photos", "expected a Recipe, found int"),
    "recipe file broken": ("train syntax.py:f --data photos", "syntax.py"),
    "no data": (TRAIN, "expected --data"),
    "data missing": (f"{TRAIN} --data absent", "expected images at absent"),
    "data empty": (f"{TRAIN} --data empty", "expected images at empty, found none"),
    "data is text": (f"{TRAIN} --data file", "uncompressed tar"),
    "data no tar": (f"{TRAIN} --data broken.tar", "uncompressed tar"),
    "loose and classes": (f"{TRAIN} --data mixed", "in a class folder or none"),
    "both splits": (f"{TRAIN} --data split", "--val"),
    "held-out missing": (f"{TRAIN} --data photos --val absent", "expected images at absent"),
    "held-out classes": (f"{TRAIN} --data photos --val purple", "found class 'purple'"),
    "no key": (f"{TRAIN} --data photos --set loop.bach_size=3", "did you mean 'batch_size'"),
    "no value": (f"{TRAIN} --data photos --set loop.batch_size", "expected KEY=VALUE"),
    "value apart": (
        f"{TRAIN} --data photos --set loop.duration 16_images",
        "expected KEY=VALUE, found 'loop.duration'; write them as one word",
    ),
    "recipe raises": (
        "train raising.py:deep --data photos",
        "raising.py: expected a recipe from d",
    ),
    "recipe's line": ("train raising.py:deep --data photos", "TypeError in line 5: ARConfig"),
    "recipe's field": ("train raising.py:deep --data photos", "one of num_layers, width, num_he"),
    "recipe divides": ("describe raising.py:none", "found ZeroDivisionError in line 9: division"),
    "out nowhere": (f"train {RECIPE}:kill_phase1 --data photos --out /proc/x", PLACE),
    "sample nowhere": ("sample runs/toy_ar --num 1 --out /proc/x/y", f"/proc/x/y: {PLACE}"),
    "array nowhere": (
        "sample runs/toy_ar --num 1 --out new --npz /proc/x/y.npz",
        f"/proc/x: {PLACE}",
    ),
    "edit nowhere": ("edit runs/toy_nar one.png --box 0,0,1,0.5 --num 1 --out /proc/x", PLACE),
    "reconstruct nowhere": (
        "reconstruct runs/toy_phase1 one.png --out /proc/x/y.png",
        f"/proc/x: {PLACE}",
    ),
    "probe nowhere": ("probe runs/toy_ar --data photos --out /proc/x/y.png", f"/proc/x: {PLACE}"),
    "encode nowhere": ("encode runs/toy_phase1 --data photos --out /proc/x/y", PLACE),
    "demo nowhere": ("demo --out /proc/x", f"/proc/x: {PLACE}"),
    "demo over a file": ("demo --out file", "found a file"),
    "a finished run's data": (f"{DONE} --data unlabelled", "is finished, and was made with data"),
    "wrong type": (f"{TRAIN} --data photos --set loop.batch_size=big", "expected int, found 'big'"),
    "no unit": (f"{TRAIN} --data photos --set loop.duration=20", "500k steps"),
    "wrong unit": (f"{TRAIN} --data photos --set loop.duration=2weeks", "500k steps"),
    "wrong choice": (f"{TRAIN} --data photos --set loop.precision=fp16", "found value 'fp16'"),
    "batch of none": (f"{TRAIN} --data photos --set loop.batch_size=0", "at least 1, found 0"),
    "odd parts": (f"{TRAIN} --data photos --set loop.accumulate=3", "divisible by accumulate 3"),
    "alpha": (f"{TRAIN} --data photos --set task.perceptual.alpha=2", "alpha in [0, 1], found 2"),
    "layers": (
        f'{TRAIN} --data photos --set task.perceptual.semantic_layers=["relu9"]',
        "expected layers among",
    ),
    "resolution": (
        f"{TRAIN} --data photos --set task.tokenizer.resolution=30 --set task.data.resolution=30",
        "multiple of f",
    ),
    "crops and model": (f"{TRAIN} --data photos --set task.data.resolution=32", "of 16 px"),
    "crops and codes": (f"{AR} --data photos --set task.data.resolution=32", "resolution=16"),
    "out is a file": (f"train {RECIPE}:kill_phase1 --data photos --out file", "found a file"),
    "upstream missing": (f"train {RECIPE}:kill_ar --data photos --out new", "semvq train kill_ph"),
    "upstream wrong": (f"{AR} --data photos --upstream runs/toy_ar", "tokenizer"),
    "upstream unwanted": (f"{TRAIN} --data photos --upstream runs/toy_ar", "starts from nothing"),
    "upstream unfinished": (f"{AR} --data photos --upstream runs/started", "finished run"),
    "upstream without codes": (f"{AR} --data photos --upstream runs/toy_autoencoder", "codes"),
    "no codes": (AR, "expected --tokens CACHE or --data PATH"),
    "tokens missing": (f"{AR} --tokens absent", "semvq encode"),
    "codes of another space": (
        f"train {RECIPE}:kill_ar --out new_ar --upstream other/toy_phase1 "
        "--tokens runs/toy_ar/tokens",
        "code space",
    ),
    "classes": (f"{AR} --data unlabelled", "num_classes=0"),
    "heads": (f"{AR} --data photos --set task.generator.num_heads=5", "multiple of num_heads"),
    "sample of nothing": ("sample absent", "no such folder"),
    "sample of a tokenizer": ("sample runs/toy_phase1", "found a tokenizer run"),
    "reconstruct by a generator": ("reconstruct runs/toy_ar one.png", "tokenizer run"),
    "reconstruct no image": ("reconstruct runs/toy_phase1 absent.png", "absent.png"),
    "reconstruct text": ("reconstruct runs/toy_phase1 text.jpg", "text.jpg: expected"),
    "reconstruct without codes": ("reconstruct runs/toy_autoencoder one.png", "plain autoencoder"),
    "class": ("sample runs/toy_ar --class purple", "expected a name among 'blue', 'green', 'red'"),
    "none": ("sample runs/toy_ar --num 0", "at least 1, found 0"),
    "steps of AR": ("sample runs/toy_ar --steps 4", "steps"),
    "top-p": ("sample runs/toy_ar --top-p 2", "share in (0, 1]"),
    "decoder": ("sample runs/toy_ar --decoder other/toy_phase1", "expected the code space"),
    "probe of NAR": ("probe runs/toy_nar --data photos", "expected an AR run, found a NAR one"),
    "encode twice": ("encode runs/toy_phase1 --data photos --out runs", "expected a new folder"),
    "views": ("encode runs/toy_phase1 --data photos --out t --views 0", "at least 1 view"),
    "unknown key in a file": ("reconstruct wrong_config one.png", "chanels"),
    "weights cut": ("reconstruct cut_weights one.png", "expected a safetensors file"),
    "weights pickled": ("reconstruct pickled one.png", "expected a safetensors file"),
    "asset": ("assets fetch vgg61", "did you mean 'vgg16"),
    "reconstruct a folder": (
        "reconstruct runs/toy_phase1 photos/red",
        "photos/red: expected an image file, found a folder; give files, such as photos/red/*.png",
    ),
    "edit a folder": ("edit runs/toy_nar photos --box 0,0,1,1", "expected an image file, found a"),
    "mask is a folder": ("edit runs/toy_nar one.png --mask photos", "expected an image file, fou"),
    "describe": ("describe imagenet", "expected a recipe, found 'imagenet'"),
    "minutes": ("demo --minutes 0", "--minutes: expected"),
    "another configuration": (
        f"train {RECIPE}:kill_phase1 --data photos --out runs/toy_phase1",
        "run of another configuration",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_line(place, monkeypatch, capsys, name):
    command, words = MISTAKES[name]
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    assert "Traceback" not in error
    lines = [x for x in error.splitlines() if "error: " in x]
    assert len(lines) == 1 and words in lines[0], error
    assert not os.path.exists("new") and not os.path.exists("new_ar"), "a mistake left a folder"


def test_there_are_forty():
    assert len(MISTAKES) >= 40


def test_a_full_disk_says_what_to_do_and_keeps_what_is_there(place, monkeypatch, capsys):
    from semvq.training import loop

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoints")

    monkeypatch.chdir(place)
    monkeypatch.setattr(loop, "save_checkpoint", full)
    with pytest.raises(SystemExit) as stop:
        main(f"train {RECIPE}:kill_phase1 --data photos --out full".split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "No space left on device: 'checkpoints'; free some space" in error
    assert "Traceback" not in error


def test_out_of_memory_says_what_to_try(place, monkeypatch, capsys):
    from semvq.training.tokenizer_task import TokenizerTask

    def too_much(self, batch, images_seen):
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.chdir(place)
    monkeypatch.setattr(TokenizerTask, "turns", too_much)
    with pytest.raises(SystemExit) as stop:
        main(f"train {RECIPE}:kill_phase1 --data photos --out oom".split())
    assert stop.value.code == 2
    assert "out of memory with 4 images at a time" in (error := capsys.readouterr().err)
    assert "--set loop.accumulate=2" in error and "Traceback" not in error
    monkeypatch.undo()
    monkeypatch.chdir(place)
    again = "--set loop.accumulate=2 --set loop.duration=2steps"
    with pytest.raises(SystemExit) as stop:
        main(f"train {RECIPE}:kill_phase1 --data photos --out oom {again}".split())
    assert stop.value.code == 0, capsys.readouterr().err
