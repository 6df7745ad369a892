"""Whether a kernel runs on a device, found out by running it once."""

import functools
import warnings
from collections.abc import Callable

import torch


@functools.cache
def runs_on(device: torch.device, what: str, trial: Callable[[torch.device], None]) -> bool:
    """Whether `trial(device)` comes back without an error; tried once, with one warning if not.

    `what` names the work in the warning: "the search for the nearest code".
    """
    # Triton may be missing, find no C compiler, not know the card, or compute something else on
    # one nobody has tried: only a trial tells.
    try:
        trial(device)
    except torch.OutOfMemoryError:
        raise  # it says nothing of the kernel
    except Exception as error:
        warnings.warn(
            f"expected Triton to run on {device}, for {what}; "
            f"found {type(error).__name__}: {error}; plain PyTorch does the same more slowly; "
            "install triton>=3.2 and a C compiler for the fast one",
            stacklevel=2,
        )
        return False
    return True
