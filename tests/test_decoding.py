"""The kernels of sampling against PyTorch: in Triton's interpreter here, on a card where one is."""

import pytest
import torch

from tests.decoding_cases import CASES
from tests.interpreter import interpreted


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return interpreted("tests.decoding_cases")


@pytest.mark.parametrize("case", CASES)
def test_kernels_in_the_interpreter(case, outcomes):
    assert outcomes[case] == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_kernels_on_a_gpu(case):
    CASES[case]("cuda")
