"""What a person reads while a run trains: speed, time left, and the last figures."""

import re

import pytest

from semvq.training import journal as module
from semvq.training.journal import Journal, Pace, SilentJournal, in_words, read_log
from semvq.training.runs import train_recipe
from tests.toy import photos, toy_autoencoder, toy_generator, toy_phase1


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01, "400/s"), (0.4, "10/s"), (0.5, "8/s"), (10, "0.4/s"), (95, "0.042/s")],
)
def test_slow_rates_keep_two_digits(clock, seconds, words):
    pace = Pace(0)
    for step in (1, 2, 3):
        clock.now += seconds
        pace.advance(4 * step)
    assert pace.speed() == words


def test_an_evaluation_moves_the_time_left_and_not_the_speed(clock):
    pace = Pace(0)
    for step in range(1, 11):
        clock.now += 1 if step != 5 else 31  # half a minute of evaluation
        pace.advance(10 * step)
    assert pace.speed() == "10/s"
    assert pace.left(1100) == "7 min"  # 4 seconds a step, as there will be more evaluations


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5000, "83 min"), (12600, "3.5 hours"),
     (345600, "4.0 days")],
)  # fmt: skip
def test_times_are_words(seconds, words):
    assert in_words(seconds) == words


def test_the_last_line_has_the_final_figures(clock, tmp_path, capfd):
    headline = ("loss/l1", "val/psnr")
    with Journal(tmp_path, "stage", 8, headline, tensorboard=False) as journal:
        journal.resume(0)
        for seen in (4, 8):
            clock.now += 1
            journal.advance(seen)
            journal.log(seen, {"loss/l1": 0.5 / seen, "other": 3.0})
            journal.log(seen, {"val/psnr": 20.0 + seen})
    assert capfd.readouterr().err == "stage: 8/8 images, 4/s  l1 0.0625  val/psnr 28\n"


def test_the_end_is_said_once(clock, tmp_path, capfd):
    with Journal(tmp_path, "t", 8, ("loss",), tensorboard=False) as journal:
        clock.now += 2 * module.PLAIN_SECONDS
        journal.advance(4)
        clock.now += 2 * module.PLAIN_SECONDS
        journal.advance(8)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["t: 4/8 images", "t: 8/8 images"]


def test_no_last_line_where_it_is_not_the_end(clock, tmp_path, capfd):
    with Journal(tmp_path, "stage", 8, (), tensorboard=False) as journal:
        journal.advance(4)
    with (
        pytest.raises(ValueError, match="stop"),
        Journal(tmp_path, "s", 8, (), tensorboard=False) as j,
    ):
        j.advance(8)
        raise ValueError("stop")
    assert capfd.readouterr().err == ""


def test_a_resumed_run_knows_the_figures_before(clock, tmp_path, capfd):
    with Journal(tmp_path, "stage", 8, ("loss",), tensorboard=False) as journal:
        journal.log(8, {"loss": 1.5})
    with Journal(tmp_path, "stage", 8, ("loss",), tensorboard=False) as journal:
        journal.resume(8)
    assert capfd.readouterr().err == "stage: 8/8 images, –/s  loss 1.5\n"


def test_unreadable_files_are_named_once_in_any_process(tmp_path, capfd):
    for journal in (Journal(tmp_path, "stage", 8, (), tensorboard=False), SilentJournal(3)):
        for _ in range(2):
            journal.name_bad(("a.jpg: empty", "b.jpg: text"), "skipped")
    lines = ["skipped: a.jpg: empty (1 so far)", "skipped: b.jpg: text (2 so far)"]
    assert capfd.readouterr().err.splitlines() == [*lines, *(f"process 3: {x}" for x in lines)]


@pytest.mark.parametrize("kind", ["autoencoder", "phase1", "ar"])
def test_even_the_shortest_training_ends_with_a_line_of_its_last_evaluation(tmp_path, capfd, kind):
    data = photos(tmp_path / "photos")
    if kind == "ar":
        assert train_recipe(toy_phase1(), tmp_path / "toy_phase1", data=data) is None
        recipe = toy_generator("ar", duration="1 step")
    else:
        make = toy_phase1 if kind == "phase1" else toy_autoencoder
        recipe = make(duration="1 step")
    capfd.readouterr()
    assert train_recipe(recipe, tmp_path / "run", data=data, title="1/6 warm-up") is None
    last = capfd.readouterr().err.splitlines()[-1]
    name, value = [(k, v) for k, v in read_log(tmp_path / "run")[-1].items() if "val/" in k][0]
    assert re.match(r"1/6 warm-up: 4/4 images, [\d.]+/s  ", last), last
    assert f"{name} {value:.3g}" in last


@pytest.mark.parametrize(("duration", "said"), [("5 images", True), ("8 images", False)])
def test_a_length_that_is_no_whole_number_of_batches_is_said(tmp_path, capfd, duration, said):
    data = photos(tmp_path / "photos")
    recipe = toy_autoencoder(duration=duration)
    assert train_recipe(recipe, tmp_path / "run", data=data) is None
    err = capfd.readouterr().err
    assert ("toy_autoencoder: 5 images, rounded up to 8 by whole batches\n" in err) == said
    assert read_log(tmp_path / "run")[-1]["images_seen"] == 8


def test_an_unreadable_held_out_file_is_named_once(tmp_path, capfd):
    data, val = photos(tmp_path / "photos"), photos(tmp_path / "val", per_class=2)
    (val / "red" / "1.png").write_bytes(b"")
    recipe = toy_autoencoder(duration="3 steps", evaluate_every="1 step")
    assert train_recipe(recipe, tmp_path / "run", data=data, val=val) is None
    named = [x for x in capfd.readouterr().err.splitlines() if "unreadable" in x]
    path = val / "red" / "1.png"
    assert named == [f"left out an unreadable image: {path}: the file is empty (1 so far)"]


def test_a_held_out_file_alone_in_its_batch_is_named_too(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("semvq.training.tokenizer_task.EVAL_BATCH", 1)
    data, val = photos(tmp_path / "photos"), photos(tmp_path / "val", per_class=2)
    (val / "red" / "1.png").write_bytes(b"")
    assert train_recipe(toy_autoencoder(), tmp_path / "run", data=data, val=val) is None
    assert "left out an unreadable image" in capfd.readouterr().err


def test_a_transformer_names_what_its_cache_is_without(tmp_path, capfd):
    data = photos(tmp_path / "photos")
    assert train_recipe(toy_phase1(), tmp_path / "toy_phase1", data=data) is None
    val = photos(tmp_path / "val", per_class=2)
    (val / "red" / "1.png").write_bytes(b"")
    capfd.readouterr()
    assert train_recipe(toy_generator("nar"), tmp_path / "run", data=data, val=val) is None
    assert capfd.readouterr().err.count(f"{val / 'red' / '1.png'}: the file is empty") == 1
