"""What the documents promise is there, and their commands run."""

import os
import re
import shlex
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Event, Thread
from urllib.request import urlopen

import pytest
import torch

from semvq.cli import main, parser
from semvq.config import with_overrides
from semvq.evaluation import features, intervals, side_by_side
from semvq.recipes import find_recipe
from tests.evaluation_toy import toy_network
from tests.toy import photos

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_there_are_exactly_two_set_up_commands():
    commands = blocks("bash")
    assert len(commands) == 2
    assert all(len(c.strip().splitlines()) == 1 for c in commands)
    assert commands[0].strip().endswith("semvq demo")
    assert commands[1].strip().endswith("python -m pytest -n 2")


def test_installing_alone_is_the_first_command_without_the_demo():
    page = (ROOT / "docs" / "your-photos.md").read_text()
    (alone,) = re.findall(r"```console\n(python3 -m venv .*)\n```", page)
    assert blocks("bash")[0].strip() == f"{alone} && .venv/bin/semvq demo"
    assert "(docs/your-photos.md#install)" in README and "\n## Install\n" in page


def test_code_fits_into_its_column():
    """A window of 1280 pixels shows 90 characters."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        fences = re.findall(
            r"^```(?:console|python|text)\n(.*?)^```", page.read_text(), re.M | re.S
        )
        for line in "".join(fences).splitlines():
            assert len(line) <= 90, (page.name, line)


def own_quantizer(levels: str, num_codes: int, code_dim: int) -> list[str]:
    fields = {"levels": levels, "num_codes": num_codes, "code_dim": code_dim}
    return [f"task.tokenizer.quantizer.{name}={value}" for name, value in fields.items()]


@pytest.mark.parametrize(
    "levels, num_codes, code_dim, words",
    [
        ("[4,4,4,4]", 256, 4, "levels: expected odd numbers from 3 on, found [4, 4, 4, 4]"),
        ("[1,3]", 3, 2, "levels: expected odd numbers from 3 on, found [1, 3]"),
        ("[9,9,9,9]", 525, 4, "expected num_codes 6561 and code_dim 4, found 525 and 4"),
        ("[5,5,3]", 75, 4, "expected num_codes 75 and code_dim 3, found 75 and 4"),
    ],
)
def test_the_example_refuses_levels_that_do_not_fit(
    tmp_path, capsys, levels, num_codes, code_dim, words
):
    recipe = f"{ROOT / 'examples' / 'my_recipe.py'}:my_phase1"
    fields = own_quantizer(levels, num_codes, code_dim)
    photos(tmp_path / "PHOTOS")
    command = ["train", recipe, "--data", str(tmp_path / "PHOTOS"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main([*command, *(part for field in fields for part in ("--set", field))])
    said = capsys.readouterr().err.strip()
    assert stop.value.code != 0 and words in said and len(said.splitlines()) == 1, said


def test_the_example_gives_the_lookup_of_its_codes():
    recipe = find_recipe(f"{ROOT / 'examples' / 'my_recipe.py'}:my_phase1")
    recipe = with_overrides(recipe, own_quantizer("[3,5,9]", 135, 3))
    quantizer = recipe.task.tokenizer.quantizer.build()
    latents = 3 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = quantizer(latents)
    assert torch.equal(found.embeddings, quantizer.lookup(found.codes))
    assert set(quantizer.encode(latents).unique().tolist()) == set(range(135))


def test_links_and_named_files_exist():
    for page in [
        ROOT / "README.md",
        ROOT / "EXPERIMENTS.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_paper_map_names_what_exists():
    rows = (ROOT / "docs" / "paper-map.md").read_text().splitlines()
    source = {p: p.read_text() for p in (ROOT / "src" / "semvq").rglob("*.py")}
    named = 0
    for row in rows:
        for file in re.findall(r"`((?:\w+/)*\w+\.py)`", row):
            inside = [ROOT / "src" / "semvq" / file, ROOT / file]
            assert any(p.exists() for p in inside), file
            named += 1
        for file, name in re.findall(r"`(\w+/\w+\.py)`: `([A-Za-z_0-9.]+)`", row):
            text = source[ROOT / "src" / "semvq" / file]
            for part in name.split("."):
                assert re.search(rf"\b(def|class) {part}\b|^{part}\b", text, re.MULTILINE), name
    assert named > 20


def readme_commands() -> list[str]:
    lines = "".join(blocks("console")).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("semvq ")]


@pytest.mark.parametrize("command", readme_commands())
def test_readme_command_parses(command):
    parser().parse_args(shlex.split(command)[1:])


SHORT = [
    "loop.duration=2 steps", "loop.batch_size=4", "task.data.val_share=0.25",
]  # fmt: skip


def narrow(recipe: str) -> list[str]:
    """What makes the recipes for a GPU small enough for this test."""
    if not recipe.startswith(("labelled64", "photos128")):
        return []
    changes = ["task.tokenizer.channels=16"]
    if recipe.endswith(("phase1", "phase2")):
        changes += ["task.perceptual.vgg_size=48", "task.perceptual.logits_size=48"]
    if recipe.endswith("ar"):
        changes = ["task.generator.num_layers=2", "task.generator.width=64", "task.num_views=2"]
    return [*changes, "loop.evaluate_every=2 steps"]


def test_the_readme_leads_with_the_recipes_for_ones_own_photos():
    trained = [c.split()[2] for c in readme_commands() if c.startswith("semvq train")]
    families = list(dict.fromkeys(name.partition("_")[0] for name in trained))
    assert families == ["labelled64", "photos128", "fruit"]
    described = [c for c in readme_commands() if c.startswith("semvq describe")]
    assert len(described) >= 2 and all("--device" in c for c in described), "what it costs"


@contextmanager
def ctrl_c_once_it_answers(arguments: list[str]) -> Iterator[None]:
    """The user of a server: opens its page, and then ends it. Adds a free port to the command."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments += ["--port", str(port)]

    ended = Event()

    def look_and_leave() -> None:
        while not ended.wait(0.1):
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
                assert page.status == 200
                os.kill(os.getpid(), signal.SIGINT)
                return

    user = Thread(target=look_and_leave)
    user.start()
    try:
        yield
    finally:
        ended.set()
        user.join()


@pytest.mark.slow
def test_readme_commands_and_the_python_example_run(tmp_path, monkeypatch, capsys):
    """Every README command in order, on toy photos, two steps each."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "PHOTOS")
    photos(tmp_path / "HELD_OUT", per_class=4, seed=1)
    monkeypatch.setattr(side_by_side, "SMALL_IMAGES", 32)
    monkeypatch.setattr(intervals, "NUM_SLOW_DRAWS", 3)  # each is a decomposition of seconds
    monkeypatch.setitem(features.NETWORKS, "inception", toy_network())
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(tmp_path / "PHOTOS" / "red" / "0.png", tmp_path / name)
    commands = readme_commands() + [
        "semvq train examples/my_recipe.py:my_phase1 --data PHOTOS",
        "semvq train examples/my_recipe.py:my_ar --data PHOTOS --set task.generator.num_classes=3",
        "semvq sample runs/my_ar --num 2 --code examples/my_recipe.py --out own",
    ]
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments = [a.replace("num_classes=5", "num_classes=3") for a in arguments]
            arguments += [part for s in [*SHORT, *narrow(arguments[1])] for part in ("--set", s)]
        if arguments[0] in ("evaluate", "compare"):
            arguments = [a.replace("1000", "24") for a in arguments]
            arguments += ["--num", "24"] * (arguments[0] == "compare")  # not the default of 1000
        ends = ctrl_c_once_it_answers if arguments[0] == "serve" else nullcontext
        with ends(arguments), pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0, (command, capsys.readouterr().err)
    (tmp_path / "runs" / "demo").symlink_to(tmp_path / "runs")
    exec(compile(blocks("python")[0].replace("[0, 1, 2, 3]", "[0, 1, 2, 0]"), "README", "exec"), {})
    assert (tmp_path / "own" / "grid.png").exists() and (tmp_path / "probe.png").exists()
