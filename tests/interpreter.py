"""Cases for Triton kernels, run on the CPU in a process of their own: what chooses Triton's
interpreter has to be set before Triton is imported, and holds for the whole process."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

Case = Callable[[str], None]  # takes a device, raises what is wrong


def python(*arguments: str, **environment: str) -> str:
    """What a new interpreter prints; AssertionError with its complaints where it fails."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def interpreted(module: str) -> dict[str, str]:
    """What went wrong in each case of a module whose script is `print_outcomes`."""
    pytest.importorskip("triton")
    output = python("-m", module, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    return dict(json.loads(line) for line in output.splitlines())


def print_outcomes(cases: Mapping[str, Case]) -> None:
    """A line for each: its name, and what went wrong or nothing."""
    torch.set_num_threads(1)
    for name, case in cases.items():
        try:
            case("cpu")
            print(json.dumps([name, ""]), flush=True)
        except Exception:
            print(json.dumps([name, traceback.format_exc()]), flush=True)
