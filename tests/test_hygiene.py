"""Rules of the layout, so that the picture stays easy to see."""

import ast
import dataclasses
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import semvq
from semvq.config import Config

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "semvq").rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 300, 80
MAX_CORE_LINES, MAX_INSTRUMENT_LINES = 6000, 3000
LONG_FUNCTIONS = {("training/loop.py", "train")}  # the one long story

# A package imports from its own layer or a lower one, in this order.
LAYERS = (
    (
        "config",
        "files",
        "metrics",
        "downloads",
        "foreign_weights",
        "asset_list",
        "kernels",
        "precision",
        "launch",
    ),
    ("assets", "photos"),
    ("backbones", "data"),
    ("losses", "sources"),
    ("tokenizer", "generators"),
    ("rivals",),
    ("interop",),
    ("training", "probe"),
    ("runs", "edit", "evaluation"),
    ("recipes",),
    ("demo",),
    ("grammar_parts",),
    ("grammar", "data_grammar", "sharing_grammar"),
    (
        "command_parts",
        "sample_commands",
        "evaluate_command",
        "compare_table",
        "compare_command",
        "correlate_command",
        "convert_command",
        "export_command",
        "prepare_command",
        "serve",
        "table_plan",
        "table_numbers",
        "table_command",
        "commands",
    ),  # fmt: skip
    ("cli",),
    ("__main__",),
)
LEAVES = ("tokenizer", "losses", "generators", "data", "backbones")


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "src" / "semvq").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("semvq"):
            pieces = node.module.split(".")
            names = pieces[1:2] or [alias.name for alias in node.names]
            found.update(names)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    own = part_of(path)
    if own == "__init__":
        return
    for other in imports(path) - {"__version__"}:
        assert level[other] <= level[own], f"{own} must not import {other}"
        if other != own and own in LEAVES and other in LEAVES:
            allowed = {("losses", "backbones"), ("tokenizer", "losses"), ("generators", "data")}
            assert (own, other) in allowed, f"{own} must not import {other}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    assert len(path.relative_to(ROOT / "src" / "semvq").parts) <= 2, "packages are one level deep"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = (str(path.relative_to(ROOT / "src" / "semvq")), node.name)
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES or name in LONG_FUNCTIONS, (name, length)


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    tree = ast.parse(path.read_text())
    held: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.expr)) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            held.update((node.lineno, node.end_lineno or node.lineno))
    return len(held)


# what a reader of the method need not read: lists, applications, the words of the commands and what
# started them, how other people's files are fetched and read, their networks and tokenizers, and
# code for one kind of device
COMMAND_LINE = (
    "cli",
    "grammar",
    "grammar_parts",
    "table_command",
    "table_numbers",
    "table_plan",
    "commands",
    "sample_commands",
    "evaluate_command",
    "compare_command",
    "compare_table",
    "correlate_command",
    "convert_command",
    "export_command",
    "sharing_grammar",
    "prepare_command",
    "data_grammar",
    "command_parts",
)
NOT_CORE = (
    "recipes",
    "interop",
    "sources",
    "downloads",
    "asset_list",
    "assets",
    "foreign_weights",
    "backbones",
    "kernels",
    "rivals",
    "demo",
    "edit",
    "launch",
    "serve",
    *COMMAND_LINE,
)
INSTRUMENTS = ("evaluation", "probe")  # they judge what the core makes; nothing there needs them


def test_the_core_stays_small():
    core = [p for p in SOURCES if part_of(p) not in (*NOT_CORE, *INSTRUMENTS)]
    instruments = [p for p in SOURCES if part_of(p) in INSTRUMENTS]
    assert 2000 < sum(map(code_lines, core)) < MAX_CORE_LINES
    assert sum(map(code_lines, instruments)) < MAX_INSTRUMENT_LINES


def test_every_file_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def all_configs() -> list[type]:
    for module in pkgutil.walk_packages(semvq.__path__, "semvq."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, stack = [], [Config]
    while stack:
        for child in stack.pop().__subclasses__():
            if child.__module__.startswith("semvq."):
                found.append(child)
            stack.append(child)
    return found


def test_every_config_field_is_read_somewhere():
    source = "\n".join(p.read_text() for p in SOURCES)
    configs = all_configs()
    assert len(configs) > 10
    for config in configs:
        for field in dataclasses.fields(config):
            pattern = rf"(\.{field.name}\b|getattr\([^)]*\b{field.name}\b|\"{field.name}\")"
            assert re.search(pattern, source), f"nobody reads {config.__name__}.{field.name}"


def test_no_task_is_told_apart_in_the_loop_and_tasks_do_not_know_each_other():
    training = ROOT / "src" / "semvq" / "training"
    assert "isinstance" not in (training / "loop.py").read_text()
    assert "generator_task" not in (training / "tokenizer_task.py").read_text()
    assert "tokenizer_task" not in (training / "generator_task.py").read_text()


def test_importing_the_package_touches_neither_cuda_nor_network():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "import pkgutil, importlib, semvq\n"
        "for m in pkgutil.walk_packages(semvq.__path__, 'semvq.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lint_and_format():
    for arguments in (["check"], ["format", "--check"]):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *arguments,
            "src",
            "tests",
            "scripts",
            "bench",
            "examples",
            "docs/conf.py",
        ]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_types():
    command = [sys.executable, "-m", "mypy"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
