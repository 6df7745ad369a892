"""The loop: bitwise resume, guards, accumulation, averages, frozen parts."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semvq.config import with_overrides
from semvq.data.images import stream, to_float
from semvq.tokenizer.files import load_tokenizer
from semvq.training.checkpoint import checkpoints, load_checkpoint
from semvq.training.journal import read_log
from semvq.training.loop import NonFiniteError
from semvq.training.optim import OptimConfig, WeightAverage, learning_rate
from semvq.training.runs import train_recipe
from semvq.training.tokenizer_task import TokenizerTask
from tests.forks import finish, start
from tests.toy import TOYS, photos, toy_generator, toy_phase1, toy_phase2


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory, data) -> Path:
    run = tmp_path_factory.mktemp("up") / "toy_phase1"
    assert train_recipe(toy_phase1(), run, data=data) is None
    return run


def train(kind: str, folder: Path, data: Path, upstream: Path, workers: int = 0, **changes) -> None:
    recipe = TOYS[kind](**changes)
    given = upstream if kind in ("phase2", "ar", "nar") else None
    assert train_recipe(recipe, folder, data=data, upstream=given, num_workers=workers) is None


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(folder / "checkpoints")[-1])[0]


def forget_the_end(folder: Path, images_seen: int) -> None:
    """As if killed right after the checkpoint at `images_seen`."""
    (folder / "finished").unlink()
    for path in checkpoints(folder / "checkpoints"):
        if int(path.name) > images_seen:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def assert_same_run(a: Path, b: Path) -> None:
    expected, found = everything(a), everything(b)
    assert expected.keys() == found.keys()
    different = [k for k in expected if expected[k].numpy().tobytes() != found[k].numpy().tobytes()]
    assert not different
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert read_log(a) == read_log(b)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_is_bitwise(tmp_path, data, upstream, kind, workers):
    # 18 photos train, batches of 4 in two parts: the cut after 3 steps lies inside an epoch
    changes = {"accumulate": 2, "save_every": "3 steps"}
    train(kind, tmp_path / "whole", data, upstream, 0, **changes)
    train(kind, tmp_path / "cut", data, upstream, workers, **changes)
    forget_the_end(tmp_path / "cut", images_seen=12)
    train(kind, tmp_path / "cut", data, upstream, 2 - workers, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ar"])
def test_resume_of_compiled_steps_is_bitwise_too(tmp_path, data, upstream, kind):
    changes = {"save_every": "3 steps", "compile": "on"}
    for name in ("whole", "cut"):
        train(kind, tmp_path / name, data, upstream, **changes)
    forget_the_end(tmp_path / "cut", images_seen=12)
    torch.compiler.reset()  # as in a new process
    train(kind, tmp_path / "cut", data, upstream, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resume_at_the_edge_of_an_epoch(tmp_path, data, upstream):
    size = TokenizerTask(toy_phase1().task, _setting(tmp_path, data)).epoch_size
    changes = {"batch_size": 2, "duration": f"{size} steps", "save_every": f"{size // 2} steps"}
    assert size % 2 == 0, "the toy epoch is a whole number of batches"
    for name in ("whole", "cut"):
        train("ar", tmp_path / name, data, upstream, **changes)
    forget_the_end(tmp_path / "cut", images_seen=size)
    train("ar", tmp_path / "cut", data, upstream, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_seeds_differ_and_repeat(tmp_path, data, upstream):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("nar", tmp_path / name, data, upstream, seed=seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert read_log(tmp_path / "a") != read_log(tmp_path / "c")


def test_resume_of_another_run_is_refused_with_both_values(tmp_path, data, upstream):
    run = tmp_path / "run"
    train("phase1", run, data, upstream)
    with pytest.raises(ValueError, match="loop.batch_size: expected 4, found 8"):
        train("phase1", run, data, upstream, batch_size=8)
    other = photos(tmp_path / "other", seed=1, per_class=9)
    forget_the_end(run, images_seen=10_000)
    with pytest.raises(ValueError, match="cannot resume: the checkpoint was made with data"):
        train("phase1", run, other, upstream)


def test_phase2_trains_the_decoder_only_and_starts_at_phase1(tmp_path, data, upstream):
    before = load_tokenizer(upstream)
    recipe = replace(toy_phase2(), upstream="toy_phase1")
    task = TokenizerTask(recipe.task, _setting(tmp_path, data, upstream))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(task.tokenizer(images)[0], before(images)[0])

    train("phase2", tmp_path / "run", data, upstream)
    after = load_tokenizer(tmp_path / "run")
    assert after.code_space_hash() == before.code_space_hash()
    old = load_file(upstream / "model.safetensors")
    new = load_file(tmp_path / "run" / "model.safetensors")
    for name, tensor in old.items():
        same = tensor.numpy().tobytes() == new[name].numpy().tobytes()
        assert same == (not name.startswith("decoder.")), name
    assert torch.equal(before.encode(images), after.encode(images))


@pytest.mark.parametrize("kind", TOYS)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(
    tmp_path, data, upstream, kind
):
    recipe = TOYS[kind]()
    given = upstream if kind in ("phase2", "ar", "nar") else None
    task = recipe.task.open(_setting(tmp_path, data, given))
    torch.manual_seed(0)
    task.start(stream(task.dataset, 0, 8))
    moved = set()
    for turn in task.turns(next(stream(task.dataset, 0, 8)), images_seen=10_000):
        turn.loss.backward()
        moved.add(turn.player)
    assert moved == {p.name for p in task.players}
    for player in task.players:
        for name, parameter in player.module.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
    if kind == "phase2":
        frozen = [n for n, p in task.tokenizer.named_parameters() if not p.requires_grad]
        assert frozen and not any(n.startswith("decoder.") for n in frozen)


def test_phase1_from_an_autoencoder_keeps_its_networks_and_makes_codes_of_its_latents(
    tmp_path, data
):
    train("autoencoder", tmp_path / "plain", data, None)
    plain = load_tokenizer(tmp_path / "plain")
    with pytest.raises(ValueError, match="expected a tokenizer with codes"):
        plain.encode(torch.zeros(1, 3, 16, 16))
    assert "val/usage" not in read_log(tmp_path / "plain")[-1]

    recipe = replace(toy_phase1(), upstream="toy_autoencoder")
    task = TokenizerTask(recipe.task, _setting(tmp_path, data, tmp_path / "plain"))
    for part in ("encoder", "decoder"):
        expected, found = (getattr(t, part).state_dict() for t in (plain, task.tokenizer))
        assert all(torch.equal(expected[k], found[k]) for k in expected)
    task.start(stream(task.dataset, 0, 8))
    batch = next(stream(task.dataset, 0, 8))
    _, quantized = task.tokenizer(to_float(batch["image"]))
    assert quantized.codes.unique().numel() > 4, "codes made of latents are in use from the start"

    frozen = replace(toy_phase2().task, freeze_code_space=True)
    with pytest.raises(ValueError, match="whose codes can be frozen"):
        TokenizerTask(frozen, _setting(tmp_path, data, tmp_path / "plain"))
    wide = with_overrides(recipe, ["task.tokenizer.quantizer.code_dim=4"])
    with pytest.raises(ValueError, match="latents are 8 wide.*code_dim=8"):
        TokenizerTask(wide.task, _setting(tmp_path, data, tmp_path / "plain"))


def test_phase1_from_an_autoencoder_trains_its_codes_from_the_first_step_and_resumes_bitwise(
    tmp_path, data
):
    train("autoencoder", tmp_path / "plain", data, None)
    changes = {"save_every": "3 steps", "evaluate_every": "2 steps", "log_every": "1 step"}
    recipe = replace(toy_phase1(**changes), upstream="toy_autoencoder")
    for name in ("whole", "cut"):
        train_recipe(recipe, tmp_path / name, data=data, upstream=tmp_path / "plain")
    steps = [line for line in read_log(tmp_path / "whole") if "loss/l1" in line]
    assert len(steps) == 6
    for line in steps:
        for name in ("codebook", "commitment", "entropy"):
            assert f"loss/{name}" in line, (line, name)
    forget_the_end(tmp_path / "cut", images_seen=12)
    train_recipe(recipe, tmp_path / "cut", data=data, upstream=tmp_path / "plain")
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_goes_on_from_codes_keeps_them(tmp_path, data, upstream):
    recipe = replace(toy_phase1(), upstream="toy_phase1")
    gan = replace(recipe.task.adversarial, warmup="0 steps")
    task = TokenizerTask(replace(recipe.task, adversarial=gan), _setting(tmp_path, data, upstream))
    before = load_tokenizer(upstream).quantizer.codebook
    task.start(stream(task.dataset, 0, 8))
    assert torch.equal(task.tokenizer.quantizer.codebook, before)


def test_an_upstream_run_of_another_shape_is_named_with_the_one_that_is_meant(tmp_path, data):
    train("autoencoder", tmp_path / "plain", data, None)
    recipe = replace(toy_phase1(), upstream="toy_autoencoder_64")
    wide = with_overrides(recipe, ["task.tokenizer.channels=16"])
    plain = tmp_path / "plain"
    with pytest.raises(ValueError, match=r"plain: .*channels: expected 16, found 8") as refused:
        train_recipe(wide, tmp_path / "run", data=data, upstream=plain)
    assert "starts from a run of toy_autoencoder_64" in str(refused.value)
    assert "phase 2" not in str(refused.value), "this is a phase 1"


def test_players_do_not_leak_gradients_into_each_other(tmp_path, data):
    task = toy_phase1().task.open(_setting(tmp_path, data))
    task.start(stream(task.dataset, 0, 4))
    turns = task.turns(next(stream(task.dataset, 0, 4)), images_seen=10_000)
    next(turns).loss.backward()
    assert all(p.grad is None for p in task.adversary.discriminator.parameters())
    task.tokenizer.zero_grad()
    next(turns).loss.backward()
    assert all(p.grad is None for p in task.tokenizer.parameters())


def test_nan_updates_nothing_and_n_in_a_row_abort(tmp_path, data, monkeypatch, capfd):
    turns = TokenizerTask.turns

    def poisoned(self, batch, images_seen):
        for turn in turns(self, batch, images_seen):
            yield turn._replace(loss=turn.loss * float("nan")) if images_seen >= 8 else turn

    recipe = toy_phase1(duration="20 steps", save_every="1 step", max_skipped_in_a_row=3)
    monkeypatch.setattr(TokenizerTask, "turns", poisoned)
    with pytest.raises(NonFiniteError, match="3 steps in a row.*images"):
        train_recipe(recipe, tmp_path / "run", data=data)
    paths = checkpoints(tmp_path / "run" / "checkpoints")
    (before, first), (after, last) = (load_checkpoint(p) for p in paths)
    # saved after 3 and 4 steps: the healthy two, then skipped ones
    assert (first["skipped"], last["skipped"]) == (1, 2)
    for name, tensor in before.items():
        if not name.startswith(("window.", "task.usage")):
            assert torch.equal(tensor, after[name]), name
            assert torch.isfinite(tensor.float()).all(), name
    assert "not finite; nothing was updated" in capfd.readouterr().err


def test_accumulation_matches_one_large_batch(tmp_path, data, upstream):
    # without dropout and with plain means, two halves make the same step as the whole
    recipe = toy_generator("ar", duration="3 steps")
    recipe = with_overrides(
        recipe, ["task.generator.dropout=0", "task.generator.conditioning_dropout=0"]
    )
    for parts in (1, 2):
        changed = with_overrides(recipe, [f"loop.accumulate={parts}"])
        train_recipe(changed, tmp_path / str(parts), data=data, upstream=upstream)
    one, two = everything(tmp_path / "1"), everything(tmp_path / "2")
    for name in one:
        if name.startswith("module."):
            torch.testing.assert_close(one[name], two[name], atol=2e-5, rtol=1e-4)


def test_learning_rate_warms_up_then_holds_or_falls():
    constant = OptimConfig(learning_rate=1.0)
    cosine = OptimConfig(learning_rate=1.0, schedule="cosine")
    assert learning_rate(constant, 0, 9, 100) == pytest.approx(0.1)
    assert learning_rate(constant, 50, 9, 100) == 1.0
    assert learning_rate(cosine, 10, 10, 110) == pytest.approx(1.0)
    assert learning_rate(cosine, 60, 10, 110) == pytest.approx(0.5)
    assert learning_rate(cosine, 110, 10, 110) == pytest.approx(0.0, abs=1e-9)


def test_weight_decay_spares_vectors():
    parameters = {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = OptimConfig(weight_decay=0.5).build(parameters)
    decays = {g["params"][0].ndim: g["weight_decay"] for g in optimizer.param_groups}
    assert decays == {2: 0.5, 1: 0.0}


def test_average_follows_and_swaps_back():
    weight = torch.nn.Parameter(torch.zeros(1))
    average = WeightAverage({"w": weight}, decay=0.5)
    for step in (1, 2, 3):
        weight.data.fill_(float(step))
        average.update(step)
    expected = 0.0
    for step in (1, 2, 3):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert weight.item() == pytest.approx(expected)
    assert weight.item() == 3.0


KILL_RECIPES = Path(__file__).parent / "kill_recipes.py"


def arguments(recipe: str, folder: Path, data: Path) -> list[str]:
    file = f"{KILL_RECIPES}:{recipe}"
    return ["train", file, "--data", str(data), "--out", str(folder / recipe)]


def command(recipe: str, folder: Path, data: Path) -> list[str]:
    return [sys.executable, "-m", "semvq", *arguments(recipe, folder, data)]


def test_sigterm_saves_once_and_leaves(tmp_path, data):
    process = subprocess.Popen(
        command("kill_phase1", tmp_path, data), stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(KILL_RECIPES.parent.parent)},
    )  # fmt: skip
    _wait_for(tmp_path / "kill_phase1" / "log.jsonl")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped and saved" in err
    assert checkpoints(tmp_path / "kill_phase1" / "checkpoints")


@pytest.mark.parametrize("kind", ["ar", "nar"])
def test_a_kill_after_encoding_changes_nothing(tmp_path, data, upstream, kind):
    train(kind, tmp_path / "whole", data, upstream)
    # as if killed with the tokens encoded and no checkpoint yet, amid another encoding
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole" / "tokens", cut / "tokens")
    shutil.copytree(tmp_path / "whole" / "tokens", cut / ".tokens-1")
    train(kind, cut, data, upstream)
    assert_same_run(tmp_path / "whole", cut)


def test_codes_of_other_images_are_refused(tmp_path, data, upstream):
    train("ar", tmp_path / "run", data, upstream)
    (tmp_path / "run" / "finished").unlink()
    other = photos(tmp_path / "other", seed=1, per_class=9)
    with pytest.raises(ValueError, match="expected codes of this run's images"):
        train("ar", tmp_path / "run", other, upstream)


def test_a_mistake_does_not_fix_the_folder(tmp_path, data, upstream):
    wrong = with_overrides(toy_generator("ar"), ["task.generator.num_classes=5"])
    with pytest.raises(ValueError, match="give --set task.generator.num_classes=3"):
        train_recipe(wrong, tmp_path / "run", data=data, upstream=upstream)
    train("ar", tmp_path / "run", data, upstream)


def test_phase2_does_not_start_with_an_untrained_discriminator(tmp_path, data, upstream):
    recipe = with_overrides(toy_phase2(), ['task.adversarial.warmup="0 steps"'])
    with pytest.raises(ValueError, match="expected the upstream run's discriminator.*warmup"):
        train_recipe(recipe, tmp_path / "run", data=data, upstream=upstream)


# a tokenizer's step takes ten times a transformer's, so there are fewer, and all else is denser
FEW = ["loop.duration=20 steps", "loop.save_every=2 steps", "loop.evaluate_every=6 steps"]
FEW = [part for change in FEW for part in ("--set", change)]
KILLED = {  # recipe: options, kills
    "kill_phase1": (FEW, 3), "kill_phase2": (FEW, 3), "kill_ar": ([], 2), "kill_nar": ([], 2),
}  # fmt: skip


@pytest.mark.slow
def test_ten_kills_across_four_trainings_end_in_the_same_bytes(tmp_path, data):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seconds, hit = {}, set()
    finish(start(["recipes"]))  # the first call waits for the imports
    for name, (more, _) in KILLED.items():
        began = time.monotonic()
        finish(start([*arguments(name, whole, data), *more]))
        seconds[name] = time.monotonic() - began
    rng = torch.Generator().manual_seed(0)
    for name, (more, wanted) in KILLED.items():
        line = [*arguments(name, cut, data), *more]
        kills = 0
        while kills < wanted:
            process = start(line)
            # from the first lines to near the end of what an unbroken run takes
            time.sleep(seconds[name] * (0.1 + 0.7 * float(torch.rand((), generator=rng))))
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                kills += 1
                hit.add((name, *(p.name for p in checkpoints(cut / name / "checkpoints"))))
            else:  # it had finished: start over, so that the next kill can land
                shutil.rmtree(cut / name)
        finish(start(line))
        assert_same_run(whole / name, cut / name)
    print(f"10 kills, after {len(hit)} different checkpoints: {sorted(hit)}")
    assert len(hit) > 5, "the kills fell together"


def _wait_for(path: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def _setting(folder: Path, data: Path, upstream: Path | None = None):
    from semvq.training.task import Setting

    return Setting(
        folder=folder, data=data, val=None, tokens=None, upstream=upstream,
        device=torch.device("cpu"), seed=0, batch_size=4, duration="6 steps",
    )  # fmt: skip
