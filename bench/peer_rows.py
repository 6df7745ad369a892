"""Other people's code for the same work; each row is left out where its package is not installed.

The library stands in the column "ours", the peer in that of the plain version.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bench.case import Case, Row, Setting
from bench.code_rows import fp32_rate, inputs, search_cost, shape, sizes
from bench.data_rows import jpegs, temporary_folder
from bench.plain.data import image_files
from bench.tasks import generator, generator_config, tokenizer
from bench.tokenizer_rows import forward_cost
from bench.tokenizer_rows import shape as tokenizer_shape
from bench.transformer_rows import SEED, ar_cost
from bench.transformer_rows import shape as model_shape
from semvq.data.pixels import decode
from semvq.generators.ar import ARConfig
from semvq.tokenizer.nearest import nearest_code


def vector_quantize(setting: Setting, num_codes: int) -> Case:
    """vector-quantize-pytorch's Euclidean codebook, indices alone (in evaluation mode)."""
    from vector_quantize_pytorch import VectorQuantize  # type: ignore[import-not-found]

    rows, codebook = inputs(setting, sizes(setting, num_codes))
    peer = VectorQuantize(dim=rows.shape[1], codebook_size=len(codebook)).to(setting.device).eval()
    peer.codebook = codebook

    def theirs() -> Tensor:
        return peer(rows[None])[1][0]

    flop, moved = search_cost(rows, codebook)
    return Case(
        lambda: nearest_code(rows, codebook), theirs, 1, shape(rows, codebook),
        flop, moved, fp32_rate(setting), tolerance=1e-2,
    )  # fmt: skip


def gpt2(setting: Setting, batch: int) -> Case:
    """transformers' GPT-2 of the same size, sampling with its own `generate` and cache."""
    from transformers import GPT2Config, GPT2LMHeadModel  # type: ignore[import-not-found]

    config = generator_config(setting, "ar")
    assert isinstance(config, ARConfig)
    batch = setting.pick(batch, batch, batch, min(batch, 3))
    model = generator(setting, config)
    classes = setting.integers(config.num_classes, batch)
    # one table for codes and classes, as a language model has: the class is the prompt
    peer = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.num_codes + config.num_classes,
            n_positions=config.length + 1,
            n_embd=config.width,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            bos_token_id=0,
            eos_token_id=None,
        )
    )
    peer = peer.to(setting.device, setting.dtype).eval()
    prompt = (classes + config.num_codes)[:, None]

    def theirs() -> Tensor:
        drawn = peer.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            max_new_tokens=config.length,
            min_new_tokens=config.length,
            pad_token_id=0,
        )
        return drawn[:, 1:]

    return Case(
        lambda: model.sample(batch, classes, SEED), theirs, batch,
        {"batch": batch, **model_shape(config)}, *ar_cost(setting, config, batch, 1),
        setting.precision, tolerance=None,
    )  # fmt: skip


def vq_model(setting: Setting) -> Case:
    """diffusers' VQModel of the same widths, images to reconstructions.

    Its middle has attention over all positions and three blocks per level of its decoder; there is
    nothing to compare but the pace.
    """
    from diffusers import VQModel  # type: ignore[import-not-found]

    model = tokenizer(setting)
    config, batch = model.config, setting.pick(64, 8, 8, 2)
    levels = len(config.multipliers)
    peer = VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels * m for m in config.multipliers),
        layers_per_block=config.blocks_per_level,
        latent_channels=config.quantizer.code_dim,
        num_vq_embeddings=model.num_codes,
        norm_num_groups=min(32, config.channels),
    )
    peer = peer.to(setting.device).eval()
    images = setting.random(batch, 3, config.resolution, config.resolution)

    def ours() -> Tensor:
        with setting.autocast():
            return model.decode(model.encode(images))

    def theirs() -> Tensor:
        with setting.autocast():
            return peer(images).sample

    costs = [forward_cost(config, setting, what) for what in ("encode", "decode")]
    flop, moved = (sum(parts) * batch for parts in zip(*costs))
    return Case(
        ours, theirs, batch, {"batch": batch, **tokenizer_shape(model)},
        flop, moved, setting.precision, tolerance=None,
    )  # fmt: skip


def jpeg(setting: Setting, peer: str) -> Case:
    """Decoding alone, of JPEGs in memory, one core; both are libjpeg-turbo underneath."""
    folder, num = jpegs(setting, temporary_folder())
    files = [path.read_bytes() for path in image_files(folder)]
    if peer == "simplejpeg":
        import simplejpeg  # type: ignore[import-not-found]

        read = partial(simplejpeg.decode_jpeg, colorspace="RGB")
    else:
        import cv2  # type: ignore[import-not-found]

        cv2.setNumThreads(1)

        def read(data: bytes) -> np.ndarray:
            return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)

    def pixels(function: Callable[[bytes], np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack([function(data) for data in files]))

    return Case(
        lambda: pixels(partial(decode, name="")), lambda: pixels(read), num,
        {"images": num}, tolerance=0.1,
    )  # fmt: skip


VQ = {"needs": "vector_quantize_pytorch", "install": "pip install vector-quantize-pytorch"}
DIFFUSERS = {"needs": "diffusers", "install": "pip install diffusers transformers"}
HF = {"needs": "transformers", "install": "pip install transformers"}

ROWS = (
    *(
        Row(
            f"peer-vq-{k}", "ms", partial(vector_quantize, num_codes=k),
            f"nearest of {k:,} codes against vector-quantize-pytorch", "vector-quantize-pytorch",
            **VQ,
        )
        for k in (1024, 16_384)
    ),
    *(
        Row(
            f"peer-gpt2-{batch}", "images/s", partial(gpt2, batch=batch),
            f"AR codes, {batch} at a time, against transformers' GPT-2", "transformers GPT-2", **HF,
        )
        for batch in (1, 64)
    ),
    Row(
        "peer-vqmodel", "images/s", vq_model,
        "images to codes and back, against diffusers' VQModel", "diffusers VQModel", **DIFFUSERS,
    ),
    *(
        Row(
            f"peer-{name}", "images/s", partial(jpeg, peer=name),
            f"JPEGs decoded by Pillow against {name}", name, module, f"pip install {package}",
        )
        for name, module, package in (
            ("simplejpeg", "simplejpeg", "simplejpeg"),
            ("opencv", "cv2", "opencv-python-headless"),
        )
    ),
)  # fmt: skip
