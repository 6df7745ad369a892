"""Means of gradients over processes (D16), sent off while the backward pass still runs."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from semvq.training.distributed import World
from semvq.training.sharding import Split
from semvq.training.task import Player

BUCKET_BYTES = 25 * 2**20  # DDP's: large enough for the links, small enough to leave early


class GradientMeans:
    """One player's. `expect` before its last backward pass of a step, `finish` after it.

    Buckets hold the parameters in reverse, about the order in which gradients come, and are sent in
    this order alone: every process starts the same reductions, and sums have the same order after
    a resume, which DDP's buckets, rebuilt after its first step, do not promise. A parameter may
    have no gradient in a step if it has none in any process.
    """

    def __init__(self, world: World, parameters: Iterable[nn.Parameter]) -> None:
        self.count = world.count
        self.buckets = list(_buckets(parameters)) if world.count > 1 else []
        self.expecting = False
        for index, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))
        self._clear()

    def _clear(self) -> None:
        self.missing = [set(map(id, bucket)) for bucket in self.buckets]
        self.next = 0  # the bucket to be sent next
        self.sent: list[tuple[list[Tensor], Tensor, Any]] = []

    def expect(self) -> None:
        """From now on, gradients that come are final: send each bucket that is complete."""
        self.expecting = True

    def finish(self) -> None:
        """Send what was waiting for gradients that did not come; all gradients become means."""
        while self.next < len(self.buckets):
            self._send()
        for grads, flat, reduction in self.sent:
            reduction.wait()
            flat /= self.count
            for grad, part in zip(grads, flat.split([g.numel() for g in grads])):
                grad.copy_(part.view_as(grad))
        self.expecting = False
        self._clear()

    def gathered(self) -> AbstractContextManager:
        """Every process has all weights anyway; see `sharding`."""
        return nullcontext()

    def _arrived(self, index: int, parameter: nn.Parameter) -> None:
        if not self.expecting:
            return
        if index < self.next:
            raise RuntimeError("expected one turn per player and part, found a second backward")
        self.missing[index].discard(id(parameter))
        while self.next < len(self.buckets) and not self.missing[self.next]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        grads = [p.grad for p in self.buckets[self.next] if p.grad is not None]
        self.next += 1
        if grads:
            flat = torch.cat([g.flatten() for g in grads])
            reduction = torch.distributed.all_reduce(flat, async_op=True)
            self.sent.append((grads, flat, reduction))


Means = Sequence[GradientMeans | Split]  # of all players


def means_of(world: World, player: Player, split: bool) -> GradientMeans | Split:
    """How this player's gradients become means. ValueError where it cannot be split."""
    if split and not player.parts:
        raise ValueError(
            "loop.split: expected a transformer, found a tokenizer, whose losses need gradients "
            "of gradients; leave it out"
        )
    if split and world.count > 1:
        return Split(world, player.module, player.parts, player.entry)
    return GradientMeans(world, player.parameters().values())


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """All parameters in reverse, in lists of `BUCKET_BYTES` or a little more."""
    bucket: list[nn.Parameter] = []
    for parameter in reversed(list(parameters)):
        bucket.append(parameter)
        if sum(p.nbytes for p in bucket) >= BUCKET_BYTES:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
