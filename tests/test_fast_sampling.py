"""The fast samplers draw the codes of the plain ones: `bench/plain/sampling.py` is the oracle."""

import copy
import itertools
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from bench.plain import sampling
from torch import Tensor

from semvq.generators.ar import ARConfig
from semvq.generators.base import Generator
from semvq.generators.guidance import named_schedule
from semvq.generators.halton import halton_order
from semvq.generators.nar import NARConfig
from semvq.generators.noise import AR_CODES, Noise
from semvq.generators.sampling import draw
from semvq.generators.sampling_ar import ARSampler
from semvq.kernels.capture import WARM_UP, Captured
from tests.test_sampling import K, tiny


def plain_ar(generator: Generator, num: int, classes=None, seed: int = 0, **options) -> Tensor:
    """The oracle on the library's transformer."""
    noise = Noise.consecutive(seed, 0, num, generator.device)
    return sampling.plain_ar(generator, generator.config, noise, classes, **options)


def plain_nar(generator: Generator, num: int, classes=None, seed: int = 0, **options) -> Tensor:
    """Likewise."""
    noise = Noise.consecutive(seed, 0, num, generator.device)
    return sampling.plain_nar(generator, generator.config, noise, classes, **options)


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])]
)
TRUNCATION = [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"temperature": 0.0}]
GUIDANCE = [{}, {"guidance": 3.0}, {"guidance": 5.0, "guidance_schedule": "linear"}]
CASES = pytest.mark.parametrize(
    "options", [a | b for a, b in itertools.product(TRUNCATION, GUIDANCE)]
)


@DEVICES
@CASES
def test_ar(options, device):
    generator, classes = tiny(ARConfig).to(device), CLASSES.to(device)
    expected = plain_ar(generator, 7, classes, seed=3, **options)
    for _ in range(2):  # the second call finds buffers of the first
        found = generator.sample(7, classes, seed=3, **options)
        assert torch.equal(found.flatten(1), expected)
    assert len(expected.unique()) > 5


@DEVICES
@CASES
def test_nar(options, device):
    generator, classes = tiny(NARConfig).to(device), CLASSES.to(device)
    expected = plain_nar(generator, 7, classes, seed=3, **options)
    for _ in range(2):
        found = generator.sample(7, classes, seed=3, **options)
        assert torch.equal(found.flatten(1), expected)


@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_without_classes(kind):
    generator = tiny(kind, num_classes=0)
    plain = plain_ar if kind is ARConfig else plain_nar
    assert torch.equal(generator.sample(4, seed=1).flatten(1), plain(generator, 4, seed=1))


@DEVICES
@pytest.mark.parametrize("steps", [1, 2, 5, 12, 20])
@pytest.mark.parametrize("halton", [False, True])
def test_nar_with_codes_known_here_and_there(steps, halton, device):
    generator, classes = tiny(NARConfig).to(device), CLASSES.to(device)
    draws = torch.Generator().manual_seed(0)
    known = torch.randint(0, K, (7, 12), generator=draws)
    hidden = torch.rand(7, 12, generator=draws) < torch.linspace(0, 1, 7)[:, None]
    known = known.masked_fill(hidden, -1).to(device)  # from all known to none
    order = halton_order(4, 3) if halton else None
    expected = plain_nar(generator, 7, classes, steps=steps, order=order, known=known)
    named = "halton" if halton else "confidence"
    found = generator.sample(7, classes, steps=steps, order=named, known=known.view(7, 4, 3))
    assert torch.equal(found.flatten(1), expected)
    # one row for all: the first step is shared
    expected = plain_nar(
        generator, 7, classes, steps=steps, order=order, known=known[3:4].expand(7, -1)
    )
    found = generator.sample(7, classes, steps=steps, order=named, known=known[3:4].view(1, 4, 3))
    assert torch.equal(found.flatten(1), expected)


def test_the_first_nar_step_is_one_pass_for_each_class():
    generator = tiny(NARConfig)
    rows: list[int] = []
    generator.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    generator.sample(7, CLASSES, steps=4)
    assert rows == [3, 7, 7, 7]
    rows.clear()
    generator.sample(7, CLASSES, steps=4, guidance=2.0)
    assert rows == [6, 14, 14, 14]


def sampler(generator: Generator, num: int, **guidance: float) -> ARSampler:
    schedule = named_schedule("constant", guidance["guidance"]) if guidance else None
    return ARSampler(generator, num, partial(draw, temperature=1.0), schedule)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_sampler_is_used_again_for_other_noise_and_classes():
    generator = tiny(ARConfig)
    fast = sampler(generator, 3)
    memory = fast.cache.memory.data_ptr()
    for seed, classes in ((0, [0, 1, 2]), (1, [2, 2, 0]), (0, [0, 1, 2])):
        given = torch.tensor(classes)
        found = fast(Noise.consecutive(seed, 0, 3).stream(AR_CODES), given)
        assert torch.equal(found, plain_ar(generator, 3, given, seed=seed))
    assert fast.cache.memory.data_ptr() == memory


def test_a_model_is_copied_and_pickled_without_what_it_keeps():
    generator = tiny(ARConfig)
    drawn = generator.sample(2, torch.tensor([0, 1]))
    for other in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert other.kept is not generator.kept
        assert torch.equal(other.sample(2, torch.tensor([0, 1])), drawn)


@DEVICES
@pytest.mark.parametrize("length", [1, 2, 3])
def test_ar_of_few_positions(length, device):
    """Fewer than a recording would pass if its warm-up went on from position to position."""
    torch.manual_seed(0)
    config = ARConfig(
        num_layers=1, width=16, num_heads=1, num_codes=K, grid_height=1, grid_width=length
    )
    generator = config.build().to(device)
    expected = plain_ar(generator.eval(), 2)
    assert torch.equal(generator.sample(2).flatten(1), expected)


def without_cuda(monkeypatch: pytest.MonkeyPatch, graph: Callable[[object], object]) -> None:
    """Stand-ins for CUDA's streams and graphs; "recording" is calling."""

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    fakes = {"Stream": Stream, "current_stream": Stream, "stream": nullcontext, "graph": graph}
    for name, fake in {**fakes, "CUDAGraph": object}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def test_every_call_before_a_recording_starts_at_the_same_place(monkeypatch):
    seen: list[float] = []
    position = torch.ones(1)

    def step():
        seen.append(float(position))
        position.add_(1)

    without_cuda(monkeypatch, nullcontext)
    Captured(step, (), (position,))._record()
    assert seen == [1.0] * (WARM_UP + 1)


def test_a_recording_that_failed_leaves_nothing_to_replay(monkeypatch):
    def full(graph):
        raise torch.OutOfMemoryError

    without_cuda(monkeypatch, full)
    call = Captured(lambda: None, (), ())
    with pytest.raises(torch.OutOfMemoryError):
        call._record()
    assert call.graph is None


def test_what_is_not_on_cuda_is_called():
    calls: list[float] = []
    given = torch.zeros(2)
    call = Captured(lambda x: calls.append(float(x.sum())) or x + 1, (given,), ())
    assert torch.equal(call(torch.ones(2)), torch.full((2,), 2.0)) and calls == [2.0]


@pytest.mark.gpu
@CUDA
@pytest.mark.parametrize("kind", [ARConfig, NARConfig])
def test_a_second_call_captures_nothing_and_moved_weights_do(kind):
    generator, classes = tiny(kind).cuda(), CLASSES.cuda()
    first = generator.sample(7, classes, seed=1)
    memory = torch.cuda.memory_allocated()
    kept = generator.kept._value
    for seed in range(300):
        generator.sample(7, classes, seed=seed)
    assert generator.kept._value is kept and torch.cuda.memory_allocated() == memory
    weight = next(generator.parameters())
    # as split training moves weights; a shift alone would vanish in the next norm
    weight.data = weight.data + torch.randn_like(weight)
    plain = plain_ar if kind is ARConfig else plain_nar
    found = generator.sample(7, classes, seed=1)
    assert torch.equal(found.flatten(1), plain(generator, 7, classes, seed=1))
    assert not torch.equal(found, first)


@pytest.mark.gpu
@CUDA
def test_a_graph_outlives_the_autocast_it_was_captured_in():
    """NAR's: the AR step is not captured under autocast."""
    generator, classes = tiny(NARConfig).cuda(), CLASSES.cuda()
    drawn = []
    for _ in range(3):
        with torch.autocast("cuda", torch.bfloat16):
            drawn.append(generator.sample(7, classes, seed=1))
        torch.full((2**22,), torch.nan, device="cuda")  # over whatever was freed
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
