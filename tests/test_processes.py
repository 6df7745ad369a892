"""Training over several processes (D16): the same as in one, resumable, and one writer."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from semvq.data.tokens import TokenCache
from semvq.training.checkpoint import checkpoints, load_checkpoint
from semvq.training.distributed import World
from semvq.training.journal import read_log
from tests.forks import Done, Spoken, together
from tests.toy import photos

ROOT = Path(__file__).parent.parent
RECIPES = {"double_phase1": "tests/double_recipes.py"}  # the others: tests/process_recipes.py


def arguments(recipe: str, folder: Path, data: Path, *more: str) -> list[str]:
    file = ROOT / RECIPES.get(recipe, "tests/process_recipes.py")
    task = ["train", f"{file}:{recipe}", "--data", str(data)]
    return [*task, "--out", str(folder / recipe), "--device", "cpu", *more]


def command(processes: int, *given) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, f"--nproc-per-node={processes}", "-m", "semvq", *arguments(*given)]


STEPS = {1: 20, 2: 20, 4: 10}  # of double_phase1, by the number of processes


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(processes: int, recipe: str, folder: Path, data: Path, *more: str) -> Done:
    """As torchrun would, and much sooner: no process imports torch."""
    folder.mkdir(exist_ok=True)
    line = arguments(recipe, folder, data, *more)
    return Spoken(line, folder).end(280) if processes == 1 else together(processes, line, folder)


def run_by_torchrun(processes: int, *given):
    return subprocess.run(
        command(processes, *given),
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data) -> dict[int, Path]:
    """The same phase 1 in 1, 2 and 4 processes; 4 go half the way, for a step takes 2 seconds."""
    folders = {}
    for processes, steps in STEPS.items():
        folders[processes] = tmp_path_factory.mktemp(f"world{processes}")
        more = ("--set", f"loop.duration={steps} steps")
        found = run(processes, "double_phase1", folders[processes], data, *more)
        assert found.returncode == 0, found.stderr
    return folders


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    found = run(1, "many_phase1", folder, data)
    assert found.returncode == 0, found.stderr
    return folder / "many_phase1"


def assert_same_log(a: Path, b: Path, bound: float, images: int = 10_000) -> None:
    """Up to so many images of `a`, and all of `b`."""
    expected, found = [x for x in read_log(a) if x["images_seen"] <= images], read_log(b)
    assert len(expected) == len(found)
    for x, y in zip(expected, found):
        assert x.keys() == y.keys()
        for key in x:
            assert y[key] == pytest.approx(x[key], rel=bound, abs=bound), (x["images_seen"], key)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_first_losses_agree_with_one_process(runs, processes):
    """With adaptive weight, R1 and usage entropy, held-out figures and usage; in double precision

    (see double_recipes.py), where the bound can be ten thousand times tighter.
    """
    run, images = runs[processes] / "double_phase1", 8 * STEPS[processes]
    assert_same_log(runs[1] / "double_phase1", run, 1e-9, images)
    assert read_log(run)[-1]["images_seen"] == images and "val/psnr" in read_log(run)[-1]
    log = [x for x in read_log(runs[1] / "double_phase1") if "loss/l1" in x]
    assert len(log) == 20 and all("adaptive_weight" in x for x in log)
    assert any("loss/r1" in x for x in log) and all(0 < x["usage"] <= 1 for x in log)


@pytest.mark.slow
def test_codes_and_ar_losses_agree_with_one_process(tokenizer, data, tmp_path):
    codes = {}
    for processes in (1, 2):
        found = run(
            processes, "many_ar", tmp_path / str(processes), data, "--upstream", str(tokenizer)
        )
        assert found.returncode == 0, found.stderr
        cache = TokenCache.open(tmp_path / str(processes) / "many_ar" / "tokens" / "train")
        views = [cache.read(range(len(cache)), view)[0] for view in range(4)]
        codes[processes] = (views, cache.fingerprint)
    assert codes[1][1] == codes[2][1]
    assert all(torch.equal(a, b) for a, b in zip(codes[1][0], codes[2][0]))
    assert_same_log(tmp_path / "1" / "many_ar", tmp_path / "2" / "many_ar", 1e-5)


@pytest.mark.slow
def test_another_number_of_processes_is_refused_on_resume(runs, data):
    run_folder = runs[2] / "double_phase1"
    (run_folder / "finished").unlink()
    try:
        found = run(4, "double_phase1", runs[2], data)
        assert found.returncode != 0
        assert "number of processes 2, this run has 4" in found.stderr
    finally:
        (run_folder / "finished").touch()


@pytest.mark.slow
def test_a_split_transformer_learns_what_a_whole_one_does(tokenizer, data, tmp_path):
    """Losses, norms, held-out figures, pictures, and everything that a checkpoint holds.

    Adam divides gradients that are rounding errors (a key's bias has none) by their own size.
    """
    more = ("--upstream", str(tokenizer))
    made = []
    for recipe in ("whole_ar", "split_ar"):
        found = run(2, recipe, tmp_path, data, *more)
        assert found.returncode == 0, found.stderr
        made.append(tmp_path / recipe)
    assert_same_log(*made, 2e-6)
    whole, split = (load_checkpoint(checkpoints(r / "checkpoints")[-1])[0] for r in made)
    assert whole.keys() == split.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(split[name], tensor, rtol=0, atol=3e-5, msg=name)
    exported, average = load_file(made[1] / "model.safetensors"), "average.transformer."
    assert exported and all(torch.equal(t, split[average + n]) for n, t in exported.items())
    grids = [np.asarray(Image.open(sorted((r / "samples").iterdir())[-1])) for r in made]
    assert np.abs(grids[0].astype(int) - grids[1]).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["many_nar", "split_nar"])
def test_a_killed_rank_restarted_ends_with_the_same_weights(tokenizer, data, tmp_path, recipe):
    more = ("--upstream", str(tokenizer))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    found = run(2, recipe, whole, data, *more)
    assert found.returncode == 0, found.stderr
    process = subprocess.Popen(
        command(2, recipe, cut, data, *more), env=environment(), cwd=ROOT,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    saved = cut / recipe / "checkpoints"
    deadline = time.monotonic() + 120
    while len(checkpoints(saved)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(checkpoints(saved)) >= 2
    ranks = _children(process.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    assert not (cut / recipe / "finished").exists(), "it was killed before its end"
    found = run(2, recipe, cut, data, *more)
    assert found.returncode == 0, found.stderr
    expected, again = (load_file(f / recipe / "model.safetensors") for f in (whole, cut))
    assert all(torch.equal(expected[k], again[k]) for k in expected)
    ends = [load_checkpoint(checkpoints(f / recipe / "checkpoints")[-1]) for f in (whole, cut)]
    assert all(torch.equal(ends[0][0][k], ends[1][0][k]) for k in ends[0][0])
    assert read_log(whole / recipe) == read_log(cut / recipe)


@pytest.mark.slow
def test_torch_and_fabric_say_nothing_of_their_own(data, tmp_path):
    """No banner, no warning of what will be removed: that of gradients of sums over processes."""
    found = run_by_torchrun(2, "many_phase1", tmp_path, data)
    assert found.returncode == 0, found.stderr
    for word in ("Warning", "deprecated", "Initializing distributed", "distributed_backend"):
        assert word not in found.stderr + found.stdout, found.stderr


SUMS = """
import torch
from torch import distributed
from semvq.training.distributed import World

distributed.init_process_group("gloo")
rank = distributed.get_rank()
world = World(rank, distributed.get_world_size())
torch.manual_seed(rank)
x = torch.randn(3, 4, dtype=torch.float64).T.requires_grad_()  # not contiguous
mean = world.mean(x)
both = world.gather(x.detach().contiguous()).view(2, 4, 3)
assert torch.equal(mean.detach(), both.sum(0) / 2)
weight = torch.arange(12, dtype=torch.float64).view(4, 3) * (rank + 1)
(first,) = torch.autograd.grad((weight * mean**3).sum(), x, create_graph=True)
weights = world.gather(weight.contiguous()).view(2, 4, 3)
expected = (3 * weights * (both.sum(0) / 2) ** 2).sum(0) / 2
assert torch.allclose(first, expected), "each process's loss has a part in the gradient"
(second,) = torch.autograd.grad(first.sum(), x)
assert torch.allclose(second, (6 * weights * both.sum(0) / 2).sum(0) / 2)
distributed.destroy_process_group()  # else its threads may abort the process at its end
"""


def run_in_two(folder: Path, script: str, *given: object) -> None:
    """The script, in two processes that torchrun starts, ends without a complaint."""
    (folder / "script.py").write_text(script)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    found = subprocess.run(
        [*start, str(folder / "script.py"), *map(str, given)],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr


CHAIN = """
import sys
from pathlib import Path
from semvq.training.runs import train_recipe
from tests.process_recipes import many_ar, many_phase1
folder, data = map(Path, sys.argv[1:])
for recipe in (many_phase1(), many_ar()):  # as `semvq table` does
    assert train_recipe(recipe, folder / recipe.name, data=data, val=None, num_workers=0) is None
"""


@pytest.mark.slow
def test_a_second_recipe_finds_the_first_one_finished(data, tmp_path):
    run_in_two(tmp_path, CHAIN, tmp_path / "runs", data)


@pytest.mark.slow
def test_means_over_processes_pass_gradients_back_to_all(tmp_path):
    run_in_two(tmp_path, SUMS)


MEANS = """
import torch
from torch import distributed, nn
from semvq.training import gradients
from semvq.training.distributed import World

gradients.BUCKET_BYTES = 80  # a layer each
distributed.init_process_group("gloo")
world = World(distributed.get_rank(), distributed.get_world_size())
torch.manual_seed(0)
layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))
layers[1].requires_grad_(False)
player, unused = [p for p in layers.parameters() if p.requires_grad], [*layers[3].parameters()]
means = gradients.GradientMeans(world, player)
sizes = [sum(p.numel() for p in bucket) for bucket in means.buckets]
assert sizes == [20] * 5, sizes
torch.manual_seed(1 + world.rank)
for step in range(3):
    early = []
    for part in range(2):
        if part == 1:
            means.expect()
        x = torch.randn(5, 4)
        for i in (0, 1, 2, 4, 5) if step < 2 else range(6):
            x = layers[i](x).tanh()
        x.square().sum().backward()
        early.append(len(means.sent))
    own = [None if p.grad is None else p.grad.clone() for p in player]
    means.finish()
    # what comes after the layer that has no gradient was under way; all was where all came
    assert early == ([0, 2] if step < 2 else [0, 5]), early
    for parameter, grad in zip(player, own):
        unset = any(parameter is p for p in unused) and step < 2
        assert (grad is None) == (parameter.grad is None) == unset
        if grad is not None:
            distributed.all_reduce(grad)
            assert torch.equal(parameter.grad, grad / 2)
            parameter.grad = None
means.expect()
layers[5](x.detach()).sum().backward()
try:
    layers[5](x.detach()).sum().backward()
    raise AssertionError("a gradient that came too late was taken")
except RuntimeError as error:
    assert "one turn per player" in str(error)
means.finish()
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_become_means_while_the_backward_runs(tmp_path):
    run_in_two(tmp_path, MEANS)


@pytest.mark.slow
def test_a_split_tokenizer_is_refused(data, tmp_path):
    found = run(1, "many_autoencoder", tmp_path, data, "--set", "loop.split=true")
    assert found.returncode == 2
    assert "loop.split: expected a transformer, found a tokenizer" in found.stderr


@pytest.mark.slow
def test_a_batch_that_does_not_divide_is_refused(data, tmp_path):
    found = run(2, "many_autoencoder", tmp_path, data, "--set", "loop.batch_size=7")
    assert found.returncode != 0
    assert "expected a batch size that 2 processes" in found.stderr


@pytest.mark.slow
def test_sigterm_saves_in_one_process_and_ends_all(data, tmp_path):
    process = subprocess.Popen(
        command(2, "many_autoencoder", tmp_path, data, "--set", "loop.duration=100k steps"),
        env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "many_autoencoder" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(_children(process.pid)[0], signal.SIGTERM)  # one of the two is told
    process.wait(timeout=60)
    saved = checkpoints(tmp_path / "many_autoencoder" / "checkpoints")
    assert len(saved) == 1 and load_checkpoint(saved[0])
    assert not (tmp_path / "many_autoencoder" / "finished").exists()


def _children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(x) for x in listing.stdout.split()]


def test_shares_are_whole_and_even():
    for num in (0, 1, 7, 24):
        for count in (1, 2, 4, 5):
            parts = [World(rank, count).share(num) for rank in range(count)]
            assert [i for p in parts for i in p] == list(range(num))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
