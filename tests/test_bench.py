"""The benchmark suite: every row's plain version is an oracle for ours; its figures are sound."""

import contextlib
import json
import os
from dataclasses import replace

import pytest
import torch
from bench import __main__ as bench
from bench import compiling, growth, profile
from bench.case import Case, Row, Setting, difference
from bench.measure import CEILINGS, floor_seconds, in_fresh_process, run_row
from bench.peer_rows import gpt2
from bench.plain.codes import nearest
from bench.rows import PEERS, ROWS
from bench.table import LEGEND, print_table, spread
from bench.tasks import (
    generator_config,
    generator_recipe,
    open_generator_task,
    open_task,
    phase1,
    tokenizer_config,
)
from bench.tokenizer_rows import forward_cost, step_cost
from bench.training import Steps
from bench.transformer_rows import NAR_STEPS, ar_cost, forward_cost_of

from semvq.training.distributed import start_engine
from semvq.training.loop import train

TOY = Setting("cpu", "toy", "fp32")
GPU = Setting("cuda", "paper", "bf16")  # its shapes alone: everything is counted without a device
H200 = CEILINGS["H200"]
# `fid-fast` is `fid` with another precision, and a network of 94 layers takes its time
BUILT = [row for row in ROWS if row.name != "fid-fast"]


@pytest.mark.parametrize("row", BUILT, ids=lambda row: row.name)
def test_ours_and_plain_agree(row):
    torch.manual_seed(0)
    case = row.build(TOY)
    with contextlib.nullcontext() if case.trains else torch.no_grad():
        ours, plain = case.check() if case.check else (case.ours(), case.plain())
    bound = 1e-4 if ours.is_floating_point() else 0.0
    assert difference(ours, plain) <= bound
    assert case.work >= 1 and case.shapes
    assert row.name == "load-images" or (case.flop > 0 and case.bytes > 0)


def test_the_step_that_is_timed_is_the_loops(tmp_path):
    recipe = phase1(TOY, "patchgan")
    loop = replace(
        recipe.loop, duration="3 steps", evaluate_every="3 steps", save_every="3 steps"
    )  # fmt: skip
    recipe = replace(recipe, loop=loop)
    fabric, world = start_engine(torch.device("cpu"))
    weights = []
    for name in ("loop", "steps"):
        folder = tmp_path / name
        torch.manual_seed(0)
        task = open_task(TOY, recipe, folder)
        if name == "loop":
            train(fabric, world, task, loop, folder, title="", headline=())
        else:
            steps = Steps(fabric, task, loop)
            torch.manual_seed(0)
            run_by_hand(steps, loop)
        weights.append({n: w.clone() for n, w in task.tokenizer.state_dict().items()})
    assert all(torch.equal(weights[0][n], w) for n, w in weights[1].items())


def test_the_step_that_is_timed_is_compiled_where_the_loops_is():
    recipe = generator_recipe(TOY, "ar")
    task = open_generator_task(TOY, recipe)
    fabric, _ = start_engine(torch.device("cpu"))
    parts = list(task.to_compile())
    assert parts and recipe.loop.compile == "auto"
    for mode, compiled in (("auto", False), ("off", False), ("on", True)):  # on a CPU
        Steps(fabric, task, replace(recipe.loop, compile=mode))
        assert all((part._compiled_call_impl is not None) == compiled for part in parts)


def run_by_hand(steps, loop):
    from semvq.data.images import stream
    from semvq.training.state import seed_step

    seed_step(loop.seed, -1)
    steps.task.start(stream(steps.task.dataset, 0, loop.batch_size))
    batches = stream(steps.task.dataset, 0, loop.batch_size)
    for _ in range(3):
        steps.step(next(batches))


# --- floors: figures that were counted by hand, before there was code ----------------------------


@pytest.mark.parametrize(
    ("what", "pairs", "images_per_second"),
    [("encode", 0, 6160), ("decode", 0, 4220), ("decode", 1, 3100)],
)
def test_floors_of_the_tokenizer(what, pairs, images_per_second):
    flop, moved = forward_cost(tokenizer_config(GPU, pairs), GPU, what)
    assert H200["bf16"] / flop == pytest.approx(images_per_second, rel=0.02)
    assert moved / H200["bandwidth"] < flop / H200["bf16"], "convolutions, not memory"


def test_floors_of_training_steps():
    flop, _ = step_cost(phase1(GPU, "stylegan"), GPU)
    assert flop == pytest.approx(1.31e12, rel=0.1), "the hand counted fewer passes of the critic"
    flop, _ = forward_cost_of(generator_config(GPU, "ar"), GPU)
    assert H200["bf16"] / (3 * flop) == pytest.approx(2933, rel=0.02)


@pytest.mark.parametrize(("batch", "expected"), [(1, 48), (64, 1134), (256, 1554)])
def test_floors_of_ar_sampling(batch, expected):
    flop, moved = ar_cost(GPU, generator_config(GPU, "ar"), batch, 1)
    floor = floor_seconds({"flop": flop, "bytes": moved, "rate": "bf16"}, H200)
    assert batch / floor == pytest.approx(expected, rel=0.03)


def test_floor_of_nar_sampling():
    flop, _ = forward_cost_of(generator_config(GPU, "nar"), GPU)
    assert H200["bf16"] / (NAR_STEPS * flop) == pytest.approx(714, rel=0.02)


# --- the machinery -----------------------------------------------------------------------------


def good(setting):
    x = torch.arange(4)
    return Case(lambda: x, lambda: x, 4, {"n": 4}, flop=1e6, bytes=1e3)


def wrong(setting):
    x = torch.arange(4)
    return Case(lambda: x, lambda: x + 1, 4, {"n": 4})


def broken(setting):
    raise ValueError("no such luck\nand more")


def dies(setting):
    os._exit(3)


def greedy(setting):
    def plain():
        raise torch.OutOfMemoryError("too large")

    return Case(lambda: torch.ones(1), plain, 1, {})


GOOD, WRONG, BROKEN, GREEDY = (
    Row(build.__name__, "images/s", build, "a test's") for build in (good, wrong, broken, greedy)
)


def here(function, *arguments):
    """In this process; the ceilings need no measurement."""
    if function is bench.ceilings:
        rates = {"bf16": 1e12, "tf32": 1e12, "fp32": 1e12, "bandwidth": 1e10}
        return {"device_name": "a test's", "used": rates, "measured": rates}
    return function(*arguments)


def test_table_and_json_are_well_formed(tmp_path, capsys):
    file = tmp_path / "facts.json"
    facts = bench.run([GOOD, GREEDY], TOY, 0.001, file, here)
    assert json.loads(file.read_text()) == json.loads(json.dumps(facts))
    keys = ("commit", "date", "device", "torch", "threads", "dtype", "scale", "ceilings")
    assert all(facts[key] for key in keys)
    row, greedy = facts["rows"]
    assert row["agrees"] and row["difference"] == 0 and row["shapes"] == {"n": 4}
    ours = row["ours_seconds"]
    assert 0 < ours["min"] <= ours["median"] <= ours["max"] and ours["count"] >= 1
    assert row["floor_seconds"] == 1e-6 and row["memory"] is not None
    assert row["share_of_floor"] == pytest.approx(1e-6 / ours["median"])
    assert greedy["plain_error"] == "out of memory" and greedy["times_plain"] is None
    print_table(facts)
    printed = capsys.readouterr().out
    assert "good" in printed and "out of memory" in printed and facts["commit"] in printed
    assert "floor" not in printed, "a CPU's says nothing"
    print_table(facts | {"kind": "cuda"})
    printed = capsys.readouterr().out
    below = printed.splitlines()[-3:]
    assert "of floor" in printed and below[:2] == list(LEGEND) and below[2].startswith("floor: ")


def test_one_measurement_has_no_range():
    row = {"unit": "ms", "work": 1, "s": {"median": 0.002, "min": 0.001, "max": 0.004, "count": 3}}
    assert spread(row, "s") == "2 (1–4)"
    row["s"]["count"] = 1
    assert spread(row, "s") == "2 (n = 1)"


def test_a_profile_speaks_of_operators_on_a_cpu(capsys):
    kernels = [("aten::addmm", 2, 0.003), ("aten::gelu", 1, 0.001)]
    facts = {"name": "row", "on_gpu": False, "wall": 0.005, "kernels": kernels}
    profile.show(facts, 15)
    printed = capsys.readouterr().out
    assert "5.00 ms a call, 4.00 ms of 3 operators with the profiler" in printed
    assert "of the operators' ms" in printed and "75.0%" in printed
    assert "busy" not in printed and "kernel" not in printed
    profile.show(facts | {"on_gpu": True}, 15)
    assert "3 kernels, busy 80%" in capsys.readouterr().out


def test_a_row_that_fails_is_named_and_the_others_still_run(monkeypatch, capsys):
    monkeypatch.setattr(bench, "ROWS", (BROKEN, WRONG, GOOD))
    run = bench.run
    monkeypatch.setattr(bench, "run", lambda *a: run(*a, here))
    assert bench.main(["--device", "cpu", "--quick", "--seconds", "0.001"]) == 1
    out, err = capsys.readouterr()
    assert "broken: ValueError: no such luck\n" in out
    assert "wrong: differs from plain by 1, more than 0.001" in out
    assert "\n good " in out and "failed: broken, wrong" in err
    assert bench.main(["good", "--device", "cpu", "--quick", "--seconds", "0.001"]) == 0


def test_a_process_that_dies_ends_its_row_alone():
    row = Row("dies", "ms", dies, "")
    with pytest.raises(ValueError, match="its process died"):
        in_fresh_process(run_row, row, TOY, 0.001, 1)
    found = in_fresh_process(run_row, GOOD, TOY, 0.001, 1)
    assert found["agrees"] and found["plain_memory"] is not None


MISTAKES = [
    (bench.main, "encode nosuch", "bench: expected rows that --list names, found 'nosuch'"),
    (bench.main, "sample-nar-l", "found 'sample-nar-l' (did you mean 'sample-nar-1'?)"),
    (bench.main, "--seconds -1", "bench: argument --seconds: expected a number above 0, found"),
    (bench.main, "--seconds nan", "bench: argument --seconds: expected a number above 0, found"),
    (profile.main, "encode nosuch", "bench profile: expected rows that --list names, found 'nos"),
    (profile.main, "encode --top 0", "bench profile: argument --top: expected a whole number"),
    (compiling.main, "phase3", "bench.compiling: expected one of patchgan, stylegan, phase2, fo"),
    (compiling.main, "--seconds 0", "bench.compiling: argument --seconds: expected a number"),
]
WITHOUT_CUDA = [
    (bench.main, "encode --device cuda", "bench: expected a CUDA device, found none; give --de"),
    (profile.main, "encode --device cuda", "bench profile: expected a CUDA device, found none"),
    (growth.main, "--device cuda", "bench growth: expected a CUDA device, found none; give --d"),
    (compiling.main, "", "bench.compiling: expected a CUDA device, found none; give --device cpu"),
]


@pytest.mark.parametrize(("command", "words", "message"), [*MISTAKES, *WITHOUT_CUDA])
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, command, words, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        command(words.split())
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out
    assert message in err and err.count("\n") == 1 and "[" not in err


def test_the_kernels_trial_needs_cuda_and_says_so(monkeypatch, capsys):
    kernels = pytest.importorskip("bench.kernels", reason="Triton is for Linux alone")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        kernels.main([])
    assert stop.value.code == 2
    assert "bench.kernels: expected a CUDA device, found none;" in capsys.readouterr().err


def test_the_help_names_every_other_command(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    out = capsys.readouterr().out
    for command in ("bench growth", "bench profile", "bench.kernels", "bench.compiling"):
        assert f"python -m {command}" in out


def test_the_precision_of_sample_can_be_timed_on_a_gpu():
    assert Setting.of("cuda", False) == GPU and Setting.of("cpu", True).precision == "fp32"
    exact = Setting.of("cuda", False, "fp32")
    assert (exact.scale, exact.dtype, exact.item_bytes) == ("paper", torch.float32, 4)
    # PyTorch's own choice for fp32 on CUDA: products as they are, convolutions in TF32
    assert (exact.precision, exact.convolution_rate) == ("fp32", "tf32")
    assert TOY.convolution_rate == "fp32" and GPU.convolution_rate == "bf16"


def test_the_list_names_every_row_and_what_peers_need(capsys):
    assert bench.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [row.name for row in (*ROWS, *PEERS)]
    assert [line.split()[0] for line in lines] == names and len(set(names)) == len(names)


def test_an_absent_peer_is_skipped_in_one_line(capsys):
    absent = Row("peer-x", "ms", gpt2, "", "x", "no_such_package", "pip install x")
    assert bench.installed([absent, ROWS[0]]) == [ROWS[0]]
    expected = "skipped peer-x: no_such_package is not installed (pip install x)\n"
    assert capsys.readouterr().out == expected


def test_how_far_results_are_apart():
    a = torch.tensor([1.0, -4.0])
    assert difference(a, a + 0.4) == pytest.approx(0.4 / 3.6)
    assert difference(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])) == 0.25
    assert difference(a.to(torch.uint8), a.to(torch.uint8)) == 0
    assert difference(a, a * torch.nan) == float("inf")


def test_plain_nearest_takes_the_lowest_of_equals():
    codebook = torch.tensor([[1.0], [0.0], [0.0]])
    assert nearest(torch.zeros(1, 1), codebook).tolist() == [1]


def test_growth_fits_exponents():
    assert growth.exponent([(n, 3.0 * n**1.5) for n in (2, 4, 8)]) == pytest.approx(1.5)
    found = growth.measure(TOY)
    assert {c["name"] for c in found} >= {"encode", "decode", "nearest", "sample-ar", "sample-nar"}
    assert all(len(c["points"]) >= 2 and json.dumps(c) for c in found)
