import json
import os
import re
import subprocess
import sys
import time

import pytest

from semvq.cli import main, parser

COMMANDS = (
    "demo",
    "prepare",
    "train",
    "encode",
    "reconstruct",
    "sample",
    "edit",
    "evaluate",
    "compare",
    "correlate",
    "probe",
    "table",
    "recipes",
    "describe",
    "assets",
    "convert",
    "export",
    "serve",
)


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "semvq", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_help_needs_no_torch_and_is_quick():
    code = (
        "import sys\nfrom semvq.cli import parser\nparser().format_help()\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for command in COMMANDS:
        began = time.monotonic()
        result = run(command, "--help")
        assert time.monotonic() - began < 2.0
        assert result.returncode == 0 and result.stdout.startswith(f"usage: semvq {command}")


def test_a_reader_that_leaves_ends_it_without_a_word():
    command = [sys.executable, "-m", "semvq", "recipes"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_commands_that_train_nothing_do_without_fabric():
    """It would take them five seconds more to start."""
    code = (
        "import sys\nfrom semvq import commands, evaluate_command, sample_commands, table_command\n"
        "from semvq.training.distributed import join\nimport torch\n"
        "device, world = join(torch.device('cpu'))\nassert world.count == 1 and world.is_writer\n"
        "assert not {'lightning_fabric', 'torch._dynamo'} & set(sys.modules)"
    )
    alone = {k: v for k, v in os.environ.items() if "WORLD_SIZE" not in k and "SLURM" not in k}
    subprocess.run([sys.executable, "-c", code], check=True, env=alone)


def test_importing_the_package_is_cheap_beyond_torch():
    code = (
        "import time, torch\nt = time.perf_counter()\nimport semvq\n"
        "semvq.load_tokenizer, semvq.load_generator\nprint(time.perf_counter() - t)"
    )
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
        for _ in range(2)
    )
    assert seconds < 0.5


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    line = captured.err.strip().splitlines()[-1]
    assert "error: " in line
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "fruit_phase9", "--data", "."], "expected a recipe, found"),
        (["train", "fruit_fase1", "--data", "."], "(did you mean 'fruit_phase1', "),
        (["train", "fruit_phase1", "--set", "loop.duration=20"], "loop.duration: expected text"),
        (["train", "fruit_phase1", "--set", "loop.duration=20"], "e.g. '500k steps'"),
        (
            ["train", "fruit_phase1", "--set", "loop.save_every=9 days"],
            "save_every: expected a dur",
        ),
        (
            ["train", "fruit_ar", "--set", "task.generator.num_classes=0"],
            "give --set task.generator.conditioning_dropout=0",
        ),
        (["train", "imagenet256_phase1", "--data", "nowhere"], "expected images at nowhere"),
        (["train", "imagenet256_phase1"], "expected --data"),
        (["train", "fruit_phase1", "--data", ".", "--set", "loop.bach_size=3"], "batch_size"),
        (["train", "absent.py:recipe", "--data", "."], "expected a Python file"),
        (["train", "fruit_phase2", "--data", "."], "semvq train fruit_phase1"),
        (["sample", "nowhere"], "expected the folder of an AR or NAR run, found no such folder"),
        (["probe", "nowhere", "--data", "."], "nowhere: expected the folder of"),
        (["reconstruct", "nowhere", "x.png"], "nowhere"),
        (["describe", "imagenet"], "expected a recipe, found"),
        (["assets", "fetch", "vgg17"], "did you mean 'vgg16'?"),
        (["demo", "--minutes", "0"], "--minutes"),
        (["demo", "--colour", "red"], "unrecognized arguments"),
    ],
)
def test_mistakes_end_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)


def test_ctrl_c_while_torch_is_imported_ends_in_one_line(capsys, monkeypatch):
    import semvq

    class Stop:
        def find_spec(self, name, *more):
            if name == "semvq.commands":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "semvq.commands", raising=False)
    monkeypatch.delattr(semvq, "commands", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Stop(), *sys.meta_path])
    with pytest.raises(SystemExit) as stop:
        main(["recipes"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "semvq: stopped\n"


def test_help_names_a_run_with_the_right_article():
    grammar = parser()._subparsers._group_actions[0].choices
    for command, words in (("sample", "an AR or NAR run"), ("probe", "an AR run")):
        assert f"folder of {words}" in grammar[command].format_help()


def test_every_command_has_a_handler():
    from semvq import commands

    grammar = parser()._subparsers._group_actions[0].choices
    assert set(grammar) == set(COMMANDS)
    assert all(callable(getattr(commands, name)) for name in grammar)


def output(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_help_names_the_recipes_for_ones_own_photos_on_lines_of_their_own(capsys):
    lines = output(capsys, "--help").splitlines()
    for family in ("labelled64", "photos128", "fruit"):
        assert any(x.startswith(f"  semvq train {family}_autoencoder --data PHOTOS") for x in lines)
    assert any(x.startswith("  semvq describe labelled64_phase1 --device") for x in lines)
    assert any(x.startswith("  semvq demo  ") for x in lines)


def test_recipes_piped_are_one_whole_line_each(capsys, monkeypatch):
    from semvq.recipes import RECIPES

    monkeypatch.setenv("COLUMNS", "40")
    lines = output(capsys, "recipes").splitlines()
    assert [x.split()[0] for x in lines] == [make.__name__ for make in RECIPES]
    for line, recipe in zip(lines, (make() for make in RECIPES)):
        assert recipe.summary in line and (recipe.upstream or "") in line


def test_recipes_on_a_narrow_terminal_keep_their_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "lsun_bedroom256_tokenizer" in output(capsys, "recipes")


def test_a_mistyped_recipe_gets_the_nearest_names_and_not_the_whole_list(capsys):
    line = refused(capsys, "train", "fruit_fase1", "--data", ".")
    assert "(did you mean 'fruit_phase1'" in line and "see `semvq recipes`" in line
    assert "imagenet256_ar" not in line and len(line) < 300
    line = refused(capsys, "describe", "photo128")
    assert re.search(r"did you mean 'photos128_\w+'(, 'photos128_\w+')* or 'photos128_\w+'\?", line)
    assert "did you mean" not in refused(capsys, "describe", "xyz")


def test_describe_takes_the_same_changes_as_train(capsys):
    changes = ("--set", "loop.duration=100k images", "--set", "task.tokenizer.channels=32")
    facts = json.loads(output(capsys, "describe", "labelled64_phase1", "--json", *changes))
    assert facts["images_seen"] == 100_000 and facts["parameters"]["tokenizer"] < 4_000_000
    assert "did you mean 'batch_size'" in refused(
        capsys, "describe", "labelled64_phase1", "--set", "loop.bach_size=3"
    )


def test_describe_reads_well(capsys):
    page = output(capsys, "describe", "labelled64_phase1")
    assert "for an estimate, give --device h100, h200," in page and "h200x8" in page
    assert "gflop_per_image" not in page and "images seen" in page
    page = output(capsys, "describe", "labelled64_phase1", "--device", "rtx4090")
    assert re.search(r"time +1\.42 hours \(85 min\) on 1 x NVIDIA RTX 4090", page)
    page = output(capsys, "describe", "labelled64_autoencoder", "--device", "rtx4090")
    assert re.search(r"time +0\.36\d hours \(22 min\) on", page)
    page = output(capsys, "describe", "imagenet256_ar", "--device", "a100")
    assert re.search(r"time +2\d\d hours \(10\.\d days\) on", page), page
    page = output(capsys, "describe", "imagenet256_phase1", "--device", "rtx4090x2")
    assert re.search(r"memory of a GPU +95\.2 of 24 GB", page), page
    assert re.search(r"warning +does not fit into 24 GB; give", page), page


def test_describe_piped_is_a_line_for_each_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    page = output(capsys, "describe", "ffhq256_phase1", "--device", "rtx4090")
    assert re.search(r"^time +1,\d{3} hours \(5\d\.\d days\) on 1 x NVIDIA RTX 4090$", page, re.M)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert max(map(len, output(capsys, "describe", "ffhq256_phase1").splitlines())) < 200


def test_describe_of_several_adds_their_hours_up(capsys):
    names = ("labelled64_phase1", "labelled64_ar")
    page = output(capsys, "describe", *names, "--device", "rtx4090")
    assert re.search(r"^in all +\d\.\d+ hours on 1 x NVIDIA RTX 4090, without", page, re.M), page
    facts = json.loads(output(capsys, "describe", *names, "--device", "rtx4090", "--json"))
    hours = [facts["recipes"][name]["hours"] for name in names]
    assert facts["hours_in_all"] == pytest.approx(sum(hours), abs=1e-3)
    line = refused(capsys, "describe", "fruit_ar", "--epoch-size", "-5")
    assert "--epoch-size: expected at least 1, found -5" in line


def test_a_transformers_estimate_says_nothing_of_a_perceptual_loss(capsys):
    for name, has_one in (("labelled64_ar", False), ("labelled64_phase1", True)):
        facts = json.loads(output(capsys, "describe", name, "--device", "h100", "--json"))
        assert ("perceptual" in facts["hours_note"]) == has_one


def test_describe_prints_json(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["describe", "imagenet256_phase2", "--json"])
    assert stop.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["tokenizer"] == 57_938_819
    assert facts["upstream"] == "imagenet256_phase1"
    assert facts["images_seen"] == 200_000 * 256
