"""Compiled parts: the same steps, one compilation for all blocks, none outside of the steps."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from semvq.config import from_dict, to_dict
from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator
from semvq.generators.nar import NARConfig
from semvq.kernels import compiling
from semvq.kernels.compiling import compile_parts, eager
from semvq.training.loop import LoopConfig
from semvq.training.optim import WeightAverage
from tests.toy import loop

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
KINDS = pytest.mark.parametrize("kind", [ARConfig, NARConfig])


class Counted:
    """A backend that changes nothing and counts the graphs it is given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@pytest.fixture
def backend(monkeypatch):
    torch._dynamo.reset()
    counted = Counted()
    monkeypatch.setattr(compiling, "_or_eager", lambda say: counted)
    monkeypatch.setattr(compiling, "has_triton", lambda: True)
    return counted


def tiny(kind: type) -> Generator:
    torch.manual_seed(0)
    return kind(
        num_layers=3, width=16, num_heads=2, num_codes=11, grid_height=4, grid_width=3,
        num_classes=3, dropout=0.0,
    ).build()  # fmt: skip


def parts(model: Generator) -> list[nn.Module]:
    return [*model.blocks, model.cross_entropy]


def step(model: Generator, num: int = 6) -> dict[str, torch.Tensor]:
    """Loss, figures and gradients."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 11, (num, 4, 3), generator=generator)
    torch.manual_seed(2)
    model.zero_grad()
    loss, logs = model.training_loss(codes, torch.arange(num) % 3)
    loss.backward()
    return {"loss": loss.detach(), **logs, **{n: p.grad for n, p in model.named_parameters()}}


@KINDS
@pytest.mark.parametrize("autocast", [False, True])
def test_steps_are_the_same_and_blocks_share_one_graph(kind, autocast, backend):
    plain, model = tiny(kind), tiny(kind)
    names = list(model.state_dict())
    compile_parts(parts(model), "auto", CUDA, pytest.fail)
    assert list(model.state_dict()) == names
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, found = step(plain), step(model)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert backend.graphs == 2, "one for all blocks, one for the loss: no break in either"


@KINDS
def test_averaged_weights_are_seen_and_evaluation_compiles_nothing(kind, backend):
    plain, model = tiny(kind), tiny(kind)
    compile_parts(parts(model), "auto", CUDA, pytest.fail)
    step(model)
    before = backend.graphs
    averages = []
    for net in (plain, model):
        averages.append(WeightAverage(dict(net.named_parameters()), 0.5))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1.5)
    for num in (6, 2, 5):
        codes, classes = torch.zeros(num, 4, 3, dtype=torch.int64), torch.zeros(num).long()
        with averages[0].applied(), averages[1].applied(), eager():
            expected, found = (n.evaluation_loss(codes, classes) for n in (plain, model))
        assert torch.equal(expected, found)
        assert not torch.equal(expected, plain.evaluation_loss(codes, classes))
    assert backend.graphs == before
    # the same graphs with the weights of now, and with others put in their place
    now, expected, found = (step(net)["loss"] for net in (plain, plain, model))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    with averages[0].applied(), averages[1].applied():
        expected, found = step(plain)["loss"], step(model)["loss"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert not torch.equal(found, now)
    assert backend.graphs == before


def test_who_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "has_triton", lambda: True)

    def compiled(*arguments, **more) -> bool:
        part = nn.Linear(2, 2)
        compile_parts([part], *arguments, pytest.fail, **more)
        return part._compiled_call_impl is not None

    assert compiled("auto", CUDA) and compiled("on", CPU) and compiled("on", CUDA)
    assert not compiled("auto", CPU) and not compiled("off", CUDA)
    assert not compiled("auto", CUDA, deterministic=True)
    monkeypatch.setattr(compiling, "has_triton", lambda: False)
    assert not compiled("auto", CUDA)


def test_what_cannot_be_compiled_is_named_once_and_runs(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "has_triton", lambda: True)

    def broken(name):
        def backend(graph, inputs):
            raise RuntimeError("no C compiler\nand a hundred lines more")

        return backend

    monkeypatch.setattr(torch._dynamo, "lookup_backend", broken)
    lines: list[str] = []
    plain, model = tiny(ARConfig), tiny(ARConfig)
    compile_parts(model.blocks, "auto", CUDA, lines.append)
    for _ in range(2):
        expected, found = step(plain), step(model)
        assert torch.equal(found["loss"], expected["loss"])
    (line,) = lines
    assert "RuntimeError: no C compiler; training goes on without it" in line
    assert "hundred" not in line


@pytest.mark.skipif(
    not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"),
    reason="this PyTorch compiles backward passes when they first run",
)
def test_so_does_what_cannot_be_compiled_backwards(monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "has_triton", lambda: True)

    def broken(graph, inputs):
        raise RuntimeError("a register too few")

    half = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: half)
    lines: list[str] = []
    plain, model = tiny(NARConfig), tiny(NARConfig)
    compile_parts(model.blocks, "auto", CUDA, lines.append)
    expected, found = step(plain), step(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    (line,) = lines
    assert "a register too few" in line


def test_a_run_that_knew_nothing_of_it_is_the_same_run():
    recorded = to_dict(loop())
    del recorded["compile"]
    assert from_dict(LoopConfig, recorded) == loop() != replace(loop(), compile="off")
