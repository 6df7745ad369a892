"""One thread for the toy models of the tests: for them a second one costs more than it brings."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)
