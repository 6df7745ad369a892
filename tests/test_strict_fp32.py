"""Strict fp32 inside, and the program's own settings again afterwards."""

import pytest
import torch

from semvq.evaluation.features import strict_fp32
from semvq.tokenizer.nearest import nearest_code


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_programs_setting_is_left_and_taken_up_again(precision):
    rows, codebook = torch.randn(9, 4), torch.randn(5, 4)
    expected = nearest_code(rows, codebook)
    torch.set_float32_matmul_precision(precision)
    try:
        with strict_fp32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.equal(nearest_code(rows, codebook), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_it_is_taken_up_again_after_an_error():
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.raises(KeyError), strict_fp32():
            raise KeyError
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
