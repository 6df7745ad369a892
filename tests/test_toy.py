"""The method in one file: it stands alone, and does what it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from semvq.photos import fruit

TOY = Path(__file__).parent.parent / "examples" / "toy.py"
COLUMNS, ROWS, SIDE = 14, 6, 32


def test_it_needs_none_of_the_package_and_stays_short():
    text = TOY.read_text()
    imported = {
        (node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
    }
    assert "semvq" not in imported and "import semvq" not in text
    assert len(text.splitlines()) < 300


@pytest.mark.slow
def test_it_goes_all_the_way(tmp_path):
    command = [sys.executable, str(TOY), str(fruit()[0]), "--steps", "4"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "toy.png")], capture_output=True, text=True, check=True
    )
    for step in ("without codes: PSNR", "phase 1, semantic: PSNR", "phase 2", "nats a code"):
        assert step in done.stdout
    with Image.open(tmp_path / "toy.png") as sheet:
        assert sheet.size == (COLUMNS * SIDE, ROWS * SIDE)
