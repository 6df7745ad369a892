"""Other people's code for the same work; each row is left out where its package is not installed.

The library stands in the column "ours", the peer in that of the plain version.
"""

from functools import partial

import torch
from torch import Tensor

from bench.case import Case, Row, Setting
from bench.code_rows import fp32_rate, inputs, search_cost, shape, sizes
from bench.tasks import generator, generator_config
from bench.transformer_rows import SEED, ar_cost
from bench.transformer_rows import shape as model_shape
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


VQ = {"needs": "vector_quantize_pytorch", "install": "pip install vector-quantize-pytorch"}
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
)  # fmt: skip
