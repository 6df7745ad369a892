"""From a foreign file's tensors to a model of ours: every tensor by name, none left over."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
MAX_NAMED = 3  # tensors in a message, beside the first
MAX_COUNT = 100  # of anything counted in names


class Names(NamedTuple):
    """The foreign tensors that are one of ours, one after the other in its first dimension.

    `linear`: they belong to linear layers, where ours is a 1x1 convolution.
    """

    names: tuple[str, ...]
    linear: bool = False


def size_of(tensors: Mapping[str, Tensor], name: str, path: Path, kind: str) -> torch.Size:
    """The shape of a tensor that every file of the format has; ValueError where it is not there."""
    if name not in tensors:
        first = ", ".join(sorted(tensors)[:MAX_NAMED])
        raise ValueError(
            f"{path}: expected the tensor '{name}' of {kind}, found none (but {first}, …); "
            "is it of another format? see --from"
        )
    shape = tensors[name].shape
    if not shape:
        raise ValueError(f"{path}: expected '{name}' with a shape, found a single number")
    return shape


def numbered(tensors: Mapping[str, Tensor], name: Callable[[int], str]) -> int:
    """How many tensors name(0), name(1), … there are, up to the first that is not."""
    return next((n for n in range(MAX_COUNT) if name(n) not in tensors), MAX_COUNT)


def fill(
    module: M, table: Mapping[str, Names], found: Mapping[str, Tensor], path: Path, kind: str
) -> M:
    """`module`, made on the meta device, with the tensors that `table` gives for its own, in fp32.

    `kind` is the format in words. ValueError for tensors that are missing, left over, of another
    shape, or not finite numbers, the first of them by name.
    """
    ours = module.state_dict()
    assert ours.keys() == table.keys(), sorted(ours.keys() ^ table.keys())
    _check_names(table, found, path, kind)
    state = {name: _joined(ours[name].shape, table[name], found, path, kind) for name in ours}
    module.load_state_dict(state, assign=True)
    return module.eval()


def _check_names(
    table: Mapping[str, Names], found: Mapping[str, Tensor], path: Path, kind: str
) -> None:
    wanted = {name for source in table.values() for name in source.names}
    missing, unknown = sorted(wanted - found.keys()), sorted(found.keys() - wanted)
    if missing:
        raise ValueError(
            f"{path}: expected the tensor '{missing[0]}' of {kind}, found none"
            f"{_and_more(missing, 'missing')}{_and_more(['', *unknown], 'unknown')}; is the file "
            "whole, and of this format? see --from"
        )
    if unknown:
        raise ValueError(
            f"{path}: expected the tensors of {kind} alone, found '{unknown[0]}' too"
            f"{_and_more(unknown, 'unknown')}; this variant cannot be converted"
        )


def _and_more(names: list[str], what: str) -> str:
    """The names after the first."""
    rest = names[1:]
    if not rest:
        return ""
    dots = ", …" if len(rest) > MAX_NAMED else ""
    return f" ({len(rest)} more {what}: {', '.join(rest[:MAX_NAMED])}{dots})"


def _joined(
    shape: torch.Size, source: Names, found: Mapping[str, Tensor], path: Path, kind: str
) -> Tensor:
    each = torch.Size([shape[0] // len(source.names), *shape[1:]])
    wanted = each[:2] if source.linear else each
    for name in source.names:
        tensor = found[name]
        if tensor.shape != wanted:
            raise ValueError(
                f"{path}: expected '{name}' of shape {tuple(wanted)} as in {kind} of this size, "
                f"found {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(
                f"{path}: expected '{name}' of finite numbers, found {tensor.dtype} with others"
            )
    parts = [found[name].float().reshape(each) for name in source.names]
    return torch.cat(parts).contiguous()
