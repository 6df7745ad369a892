"""Recording a function of tensors as one CUDA graph: a replay costs one launch.

Sampling is hundreds of small kernels per position, and eager PyTorch spends longer on launching
than the device on running them. Elsewhere than on CUDA the function is simply called.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 2  # calls before recording: libraries allocate their workspaces then
_RECORDS = ContextVar("records", default=True)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Inside, functions are simply called on CUDA too, so that a module's hooks see every pass."""
    token = _RECORDS.set(False)
    try:
        yield
    finally:
        _RECORDS.reset(token)


class Captured:
    """`function(*inputs)`, on CUDA recorded at the first call and replayed by all.

    `inputs` are its own tensors: a call copies new values into them. The function must depend on
    nothing else that changes but tensors at fixed places, and be free of synchronisation. What it
    does to tensors besides (a cache, a counter) is done once per call: those are to be named in
    `moved`, so that the warm-up can be undone. The result is overwritten by the next call.
    """

    def __init__(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], moved: tuple[Tensor, ...]
    ) -> None:
        self.function, self.inputs, self.moved = function, inputs, moved
        self.graph: torch.cuda.CUDAGraph | None = None
        self.result: Any = None

    def __call__(self, *values: Tensor) -> Any:
        """The function's result, for inputs of the shapes of the first ones."""
        if not _RECORDS.get() or not all(t.is_cuda for t in (*self.inputs, *self.moved)):
            return self.function(*values)
        for own, value in zip(self.inputs, values, strict=True):
            own.copy_(value)
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()
        return self.result

    def _record(self) -> None:
        before = [t.clone() for t in self.moved]
        cast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # autocast's copies of weights are freed at its end, and a graph would go on reading them
        with torch.autocast("cuda", enabled=cast[0], dtype=cast[1], cache_enabled=False):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self.function(*self.inputs)
                    # each time: two steps in a row may lead beyond the last position
                    for tensor, value in zip(self.moved, before):
                        tensor.copy_(value)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = self.function(*self.inputs)
        # not before: a recording that failed (of memory, say) leaves nothing to be replayed
        self.graph, self.result = graph, result


class Kept:
    """The sampler made last, kept with its buffers and graphs for calls of the same kind.

    One only: a cache of keys and values may be gigabytes. None at all elsewhere than on CUDA, where
    nothing is captured and a new one costs next to nothing.
    """

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: Any = None

    def get(self, model: nn.Module, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` made under this key, unless the model's tensors have moved since.

        A graph reads weights at their addresses, which `.to` and split training change.
        """
        if not _RECORDS.get() or next(model.parameters()).device.type != "cuda":
            return make()
        own = (p for part in submodules(model) for p in part._parameters.values())
        places = tuple(p.data_ptr() for p in own if p is not None)
        cast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        whole = (key, places, cast, torch.is_inference_mode_enabled())
        if whole != self._key:
            self._key = self._value = None  # free the old one's memory first
            self._value = make()
            self._key = whole
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        """A copy of a model starts with nothing kept."""
        return Kept()

    def __reduce__(self) -> tuple[type["Kept"], tuple[()]]:
        """So does one that was pickled."""
        return Kept, ()


def submodules(module: nn.Module) -> Iterator[nn.Module]:
    """The module and all inside it, a shared one twice: `modules()` without the names it makes.

    Sampling goes over hundreds of parts before a graph starts that runs for milliseconds: a NAR
    sample on one H200 took 16.0 ms with `modules()` and `parameters()`, and 15.5 with this.
    """
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from submodules(child)
