"""Hours and memory on GPUs, estimated from training steps that were measured on one H200.

A recipe is taken to reach the share of the peak that the measured step nearest to it reached, and
to keep as many bytes for the backward pass per number that its layers put out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from semvq.generators.ar import ARConfig
from semvq.losses.discriminators import StyleGANDiscriminatorConfig
from semvq.recipes.cost import DEVICES, Device, hours
from semvq.training.generator_task import GeneratorTaskConfig
from semvq.training.loop import LoopConfig
from semvq.training.task import TaskConfig
from semvq.training.tokenizer_task import TokenizerTaskConfig

MIB = 2**20


@dataclass(frozen=True)
class Step:
    """One measured step: `rate` images/s and `peak` MiB at `batch`; the rest is counted, per image.

    `peak` is beyond what was there before: weights, averages, frozen networks. Of it, `held` MiB
    are gradients and, where a row takes several steps (a transformer's takes one), the optimiser's
    moments. `gflop` and `gflop_fp32` (the perceptual loss) are `describe`'s, `outputs` are
    `cost.count_outputs` of what trains.
    """

    rate: float
    batch: int
    peak: float
    held: float
    gflop: float
    gflop_fp32: float
    outputs: int

    @property
    def share(self) -> float:
        """Of the data sheet's peak: the time that the FLOPs would take there over the one taken."""
        bf16, fp32 = self.gflop / MEASURED_ON.peak, self.gflop_fp32 / MEASURED_ON.peak_fp32
        return self.rate * (bf16 + fp32) / 1e3

    @property
    def bytes_per_output(self) -> float:
        """Of memory at the peak, beyond `held`."""
        return (self.peak - self.held) * MIB / self.batch / self.outputs


MEASURED_ON = DEVICES["h200"]
# Rows of `python -m bench --device cuda` on one H200, torch 2.11, bf16, at the paper's sizes:
# EXPERIMENTS.md, "One H200: every stage" and, for tokenizers, "One H200 again". Matrix products in
# bf16 did 787 TFLOP/s there; shares are of the data sheet's 989.4 all the same, as other devices
# have only theirs. A row measured anew brings its rate and peak here; a test recounts the others.
MEASURED: Mapping[str, Step] = {
    "step-ar": Step(1291, 128, 21_571, 659, 276.623, 0, 81_068_032),
    "step-nar": Step(1043, 128, 23_068, 658, 278.665, 0, 81_516_288),
    "step-phase1-patchgan": Step(215, 32, 21_546, 656, 995.879, 213.089, 229_703_680),
    "step-phase1-stylegan": Step(162, 32, 23_106, 898, 1194.228, 213.089, 229_703_680),
    "step-phase2": Step(141, 32, 24_735, 663, 1140.205, 120.267, 243_335_168),
}

# A CPU's shares are assumed. The demo's six recipes: 10.4 minutes by them, 13.6 on one machine,
# fewer on a faster one (docs/recipes.md).
CPU_TOKENIZER, CPU_TRANSFORMER = 0.3, 0.4


def nearest_row(task: TaskConfig) -> str:
    """The measured step most like the task's; the kind of discriminator matters before the phase.

    A tokenizer without a discriminator goes with the PatchGAN's, which is the light one.
    """
    if isinstance(task, GeneratorTaskConfig):
        return "step-ar" if isinstance(task.generator, ARConfig) else "step-nar"
    assert isinstance(task, TokenizerTaskConfig)
    gan = task.adversarial
    if gan is None or not isinstance(gan.discriminator, StyleGANDiscriminatorConfig):
        return "step-phase1-patchgan"
    return "step-phase2" if task.freeze_code_space else "step-phase1-stylegan"


def time_facts(
    facts: dict[str, Any], task: TaskConfig, devices: tuple[Device, int]
) -> dict[str, Any]:
    """Hours and where they come from; the perceptual loss is fp32 everywhere, and counted so."""
    device, count = devices
    seen = facts["images_seen"]
    if isinstance(seen, str):
        return {"hours": "needs the number of training images (epoch_size)"}
    trained = facts["training_gflop_per_image"] * 1e9 * seen
    looked = facts.get("perceptual_gflop_per_image", 0) * 1e9 * seen
    share, source = _share(task, device)
    fp32 = f" ({device.peak_fp32:g} for the perceptual loss)" if looked else ""
    note = f"{source}, {100 * share:.2g}% of the data sheet's {device.peak:g} TFLOP/s{fp32}"
    if count > 1:
        note += (
            f"; divided by {count}: the gradients' all-reduce is not counted (it overlaps with "
            "the backward pass)"
        )
    return {"hours": hours(trained, looked, device, share, count), "hours_note": note}


def _share(task: TaskConfig, device: Device) -> tuple[float, str]:
    if device.memory is None:
        generates = isinstance(task, GeneratorTaskConfig)
        return CPU_TRANSFORMER if generates else CPU_TOKENIZER, "assumed, not a measurement"
    row = nearest_row(task)
    step = MEASURED[row]
    if device is MEASURED_ON:
        source = f"measured on one H200: {step.rate:,g} images/s in the bench's {row}"
    else:
        source = f"assumed: the H200's share of the peak, measured in the bench's {row}"
    return step.share, source


def memory_facts(
    facts: dict[str, Any], task: TaskConfig, loop: LoopConfig, devices: tuple[Device, int]
) -> dict[str, Any]:
    """Memory per GPU while it works off its part of a batch; nothing for a CPU.

    Weights, gradients, optimiser and averages are known, activations an image are scaled.
    """
    device, count = devices
    if device.memory is None:
        return {}
    row = nearest_row(task)
    per_image = MEASURED[row].bytes_per_output * facts["layer_outputs_per_image"]
    share = math.ceil(loop.batch_size / count)
    splits = loop.split and isinstance(task, GeneratorTaskConfig)  # a tokenizer cannot be
    state = facts["state_bytes"] / (count if splits else 1)

    def gigabytes(parts: int) -> float:
        return (state + math.ceil(share / parts) * per_image) / 1e9

    needed, images = gigabytes(loop.accumulate), math.ceil(share / loop.accumulate)
    warnings = _uneven(loop, count)
    if needed > device.memory:
        enough = (n for n in range(loop.accumulate + 1, share + 1) if share % n == 0)
        fits = next((n for n in enough if gigabytes(n) <= device.memory), None)
        advice = "even one image at a time does not: take a GPU with more memory"
        if fits:
            advice = f"give --set loop.accumulate={fits}{_part(task, loop, fits)}"
        warnings.append(f"does not fit into {device.memory:g} GB; {advice}")
    return {
        "images_at_a_time": images,
        "memory_gb": round(needed, 2),
        "memory_of_gb": device.memory,
        "memory_note": (
            f"estimate: {state / 1e9:.2f} GB of weights, gradients, optimiser and "
            f"average, and {images} images x {per_image / 1e9:.2g} GB, scaled from the bench's "
            f"{row} on one H200; a transformer's tokenizer and CUDA's own are not counted"
        ),
        "warnings": warnings,
    }


def network_facts(
    facts: dict[str, Any], loop: LoopConfig, count: int, nodes: int
) -> dict[str, Any]:
    """What the links of a node must at least carry for its GPUs not to wait.

    A ring of all n GPUs brings (n - 1) / n of the gradients through each node's links twice, in a
    backward pass, which is two thirds of a step. Split weights are fetched twice and their
    gradients reduced once, for each part of a batch.
    """
    if nodes == 1 or not isinstance(facts["hours"], float):
        return {}
    times = 3 * loop.accumulate if loop.split else 2
    moved = times * facts["gradient_bytes"] * (count - 1) / count
    step = facts["hours"] * 3600 * loop.batch_size / facts["images_seen"]
    seconds = step if loop.split else step * 2 / 3
    what = "weights and gradients" if loop.split else "gradients"
    return {
        "network_gbit": 8 * moved / seconds / 1e9,
        "network_note": (
            f"arithmetic, not a measurement: {moved / 1e9:.2f} GB of {what} in each of the steps, "
            f"which take {step:.2g} s; with slower links the GPUs wait"
        ),
    }


def _part(task: TaskConfig, loop: LoopConfig, parts: int) -> str:
    """What working off a batch in parts changes, if anything: the usage entropy's D-bar."""
    if not isinstance(task, TokenizerTaskConfig) or task.freeze_code_space:
        return ""
    if not getattr(getattr(task.tokenizer, "quantizer", None), "entropy_weight", 0):
        return ""
    return (
        f" (the usage entropy is then over {loop.batch_size // parts} images instead of "
        f"{loop.batch_size // loop.accumulate}: docs/deviations.md, D16)"
    )


def _uneven(loop: LoopConfig, count: int) -> list[str]:
    """What training would refuse."""
    parts = count * loop.accumulate
    if loop.batch_size % parts == 0:
        return []
    return [
        f"expected a batch size that {count} GPUs x accumulate {loop.accumulate} divide, found "
        f"{loop.batch_size}; give --set loop.batch_size={max(1, loop.batch_size // parts) * parts}"
    ]
