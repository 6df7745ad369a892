"""torch.compile of the parts of a task that pay, for its training steps alone.

What is not a step runs as it is written: held-out figures and samples come in batches of other
sizes, each of which would be compiled anew, and are then those that the exported weights give.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._triton import has_triton

Compile = Literal["auto", "on", "off"]


def compile_parts(
    parts: Iterable[nn.Module],
    mode: Compile,
    device: torch.device,
    say: Callable[[str], None],
    *,
    deterministic: bool = False,
) -> None:
    """Let each of `parts` be compiled, on its own, when it is first called; in place.

    "auto" is for CUDA with Triton, and not `deterministic`: kernels are chosen by stop-watch there.
    Parts of one class share their code, so that 24 blocks are compiled once, in 10 s. What cannot
    be compiled runs eagerly, and `say` gets a line about it; with "on" it is an error.
    """
    if mode == "off":
        return
    if mode == "auto" and (device.type != "cuda" or deterministic or not has_triton()):
        return
    backend = "inductor" if mode == "on" else _or_eager(say)
    for part in parts:
        # a compiled `forward`, not a wrapping module: names in the state dict stay what they are
        part.compile(backend=backend, dynamic=False)


def eager() -> AbstractContextManager:
    """Inside, compiled parts run as they are written; nothing is compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing ever was, and to import it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _or_eager(say: Callable[[str], None]) -> Callable[..., Any]:
    """PyTorch's own compiler, or none where it fails, be it in the backward pass."""

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._functorch import config

        # else a backward pass that fails is tried again when it first runs, and ends the run there
        at_once = "force_non_lazy_backward_lowering"
        try:
            with config.patch({at_once: True} if hasattr(config, at_once) else {}):
                return torch._dynamo.lookup_backend("inductor")(graph, inputs)
        except Exception as error:
            words = str(error).strip().splitlines() or [""]
            say(
                "expected torch.compile to work here, found "
                f"{type(error).__name__}: {words[0]}; training goes on without it, more slowly; "
                "--set loop.compile=off says so from the start"
            )
            return graph.forward

    return backend
