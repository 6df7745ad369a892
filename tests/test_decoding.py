"""The kernels of sampling against PyTorch: in Triton's interpreter here, on a card where one is."""

import json

import pytest
import torch

from tests.decoding_cases import CASES
from tests.test_norm_silu import python


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    """What went wrong in each case, in a process of its own: the interpreter is for all of one."""
    pytest.importorskip("triton")
    output = python("-m", "tests.decoding_cases", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    return dict(json.loads(line) for line in output.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_kernels_in_the_interpreter(case, interpreted):
    assert interpreted[case] == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_a_gpu(case):
    CASES[case]("cuda")
