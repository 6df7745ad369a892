"""What a benchmark row is: a name, a unit, and how to build the work for one setting.

A row's work comes twice, as the library does it and as plain eager PyTorch would. Both do the same,
and say so: their results are compared in every run.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

Scale = Literal["paper", "small", "quick", "toy"]
Precision = Literal["bf16", "tf32", "fp32"]
Value = TypeVar("Value")
ITEM_BYTES = {"bf16": 2, "tf32": 4, "fp32": 4}


@dataclass(frozen=True)
class Setting:
    """Where and how large: the paper's sizes are for a GPU, toy ones for the tests."""

    device: str
    scale: Scale
    precision: Precision

    @classmethod
    def of(cls, device: str, quick: bool, precision: Precision | None = None) -> "Setting":
        """Paper sizes in bf16 on CUDA, small ones in fp32 on a CPU; `quick` is one size less."""
        if device == "cuda":
            return cls(device, "small" if quick else "paper", precision or "bf16")
        return cls(device, "quick" if quick else "small", precision or "fp32")

    def pick(self, paper: Value, small: Value, quick: Value, toy: Value) -> Value:
        """The value for this scale."""
        return {"paper": paper, "small": small, "quick": quick, "toy": toy}[self.scale]

    @property
    def dtype(self) -> torch.dtype:
        """What layers work in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def convolution_rate(self) -> Precision:
        """The ceiling of convolutions, which PyTorch does in TF32 where fp32 meets CUDA."""
        return "tf32" if self.device == "cuda" and self.precision == "fp32" else self.precision

    @property
    def item_bytes(self) -> int:
        """Bytes of one activation."""
        return ITEM_BYTES[self.precision]

    def autocast(self) -> contextlib.AbstractContextManager:
        """Inside, layers work in bf16 where this setting does."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device, torch.bfloat16, enabled=enabled)

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Standard normal numbers, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device)

    def integers(self, high: int, *shape: int, seed: int = 0) -> Tensor:
        """int64 numbers below `high`, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(high, shape, generator=generator).to(self.device)


@dataclass(frozen=True)
class Case:
    """One row's work in one setting, ready to be called again and again.

    `work` is what a call does in the row's unit (images; 1 for "ms"). `flop` and `bytes` are the
    least that a call must compute and move, 0 where nobody counted; `rate` names the ceiling for
    `flop`. `check` gives results to compare where those of the calls will not do. `tolerance`
    bounds `difference` where setting and `rate` are fp32; None compares nothing.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    work: float
    shapes: dict[str, Any]
    flop: float = 0.0
    bytes: float = 0.0
    rate: Precision = "fp32"
    check: Callable[[], tuple[Any, Any]] | None = None
    tolerance: float | None = 1e-3
    trains: bool = False  # whether the calls need gradients


@dataclass(frozen=True)
class Row:
    """A line of the table. `unit` is "images/s" or "ms".

    `build` makes models and data and returns the case. `against` says what stands in the place of
    the plain version; `needs` is the module it imports and `install` how to get it.
    """

    name: str
    unit: Literal["images/s", "ms"]
    build: Callable[[Setting], Case] = field(repr=False)
    about: str
    against: str = "plain"
    needs: str | None = None
    install: str = ""


def difference(ours: Any, plain: Any) -> float:
    """How far two results are apart: 0 is equal.

    Whole numbers: the share that differs. uint8 pixels: the largest step of 255. Others: the
    largest difference over the largest size.
    """
    assert ours.shape == plain.shape, f"shapes differ: {(*ours.shape,)}, {(*plain.shape,)}"
    ours, plain = (x.detach().cpu() for x in (ours, plain))
    if ours.dtype == torch.uint8:
        return float((ours.int() - plain.int()).abs().max()) / 255
    if not ours.is_floating_point():
        return float((ours != plain).double().mean())
    ours, plain = ours.double(), plain.double()
    if not bool(ours.isfinite().all() and plain.isfinite().all()):
        return float("inf")
    return float((ours - plain).abs().max() / plain.abs().max().clamp_min(1e-30))


_PRODUCTS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.convolution.default,
)


class _Traffic(TorchDispatchMode):
    """Elements that matrix products and convolutions read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            self.elements += sum(x.numel() for x in (*args, out) if isinstance(x, Tensor))
        return out


def counted(function: Callable[[], Any], item_bytes: int) -> tuple[float, float]:
    """FLOPs of one call, and its least bytes: products with weights read and write once.

    All between them (norms, activations, attention's scores) is taken to be fused away. Call it
    with tensors on the meta device, where nothing is computed.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        function()
    return float(flops.get_total_flops()), float(traffic.elements * item_bytes)
