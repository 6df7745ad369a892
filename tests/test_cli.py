import json
import subprocess
import sys
import time

import pytest

from semvq.cli import main, parser

COMMANDS = (
    "demo",
    "train",
    "encode",
    "reconstruct",
    "sample",
    "probe",
    "recipes",
    "describe",
    "assets",
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
        (["train", "fruit_phase9", "--data", "."], "expected a recipe among"),
        (["train", "fruit_phase1", "--data", "nowhere"], "expected images at nowhere"),
        (["train", "fruit_phase1"], "expected --data"),
        (["train", "fruit_phase1", "--data", ".", "--set", "loop.bach_size=3"], "batch_size"),
        (["train", "absent.py:recipe", "--data", "."], "expected a Python file"),
        (["train", "fruit_phase2", "--data", "."], "semvq train fruit_phase1"),
        (["sample", "nowhere"], "found no such file"),
        (["probe", "nowhere", "--data", "."], "found no such file"),
        (["reconstruct", "nowhere", "x.png"], "nowhere"),
        (["describe", "imagenet"], "expected a recipe among"),
        (["assets", "fetch", "vgg17"], "expected one of"),
        (["demo", "--minutes", "0"], "--minutes"),
        (["demo", "--colour", "red"], "unrecognized arguments"),
    ],
)
def test_mistakes_end_in_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)


def test_every_command_has_a_handler():
    from semvq import commands

    grammar = parser()._subparsers._group_actions[0].choices
    assert set(grammar) == set(COMMANDS)
    assert all(callable(getattr(commands, name)) for name in grammar)


def test_describe_prints_json(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["describe", "imagenet256_phase2", "--json"])
    assert stop.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"]["tokenizer"] == 57_938_819
    assert facts["upstream"] == "imagenet256_phase1"
    assert facts["images_seen"] == 200_000 * 256
