"""How one training starts from the tokenizer of another: new codes, or a larger decoder.

Phase 1 may start from a plain autoencoder, and phase 2 (Sec. 3.4) from phase 1.
"""

from dataclasses import replace

from semvq.config import differences
from semvq.tokenizer.conv import ResidualBlock
from semvq.tokenizer.model import Tokenizer, TokenizerConfig
from semvq.tokenizer.quantize import QuantizerConfig


def with_quantizer(tokenizer: Tokenizer, config: QuantizerConfig) -> Tokenizer:
    """The same encoder and decoder around a new quantizer, whose codes are still to be made.

    Raises ValueError where the width of the codes is another.
    """
    found = tokenizer.quantizer.code_dim
    if config.code_dim != found:
        raise ValueError(
            f"the upstream run's latents are {found} wide, this quantizer's codes are "
            f"{config.code_dim}; give --set task.tokenizer.quantizer.code_dim={found}"
        )
    new = replace(tokenizer.config, quantizer=config).build()
    new.encoder.load_state_dict(tokenizer.encoder.state_dict())
    new.decoder.load_state_dict(tokenizer.decoder.state_dict())
    return new.to(tokenizer.last_layer.device).train(tokenizer.training)


def upgrade_decoder(tokenizer: Tokenizer, config: TokenizerConfig) -> Tokenizer:
    """A tokenizer with the same code space and the same or a larger decoder (phase 2, Sec. 3.4).

    The new decoder takes over every parameter of the old one, and what it has beyond starts as
    the identity: its first reconstruction is the old one's. Raises ValueError where `config`
    differs in more than the decoder's extra blocks and attention, or has fewer of them.
    """
    _check_upgrade(tokenizer.config, config)
    new = config.build().to(tokenizer.last_layer.device)
    missing, unexpected = new.load_state_dict(tokenizer.state_dict(), strict=False)
    assert not unexpected, unexpected
    # New attention starts at zero output by itself; new residual blocks have to be told.
    for name, module in new.named_modules():
        if isinstance(module, ResidualBlock) and f"{name}.conv2.weight" in missing:
            module.zero_output()
    return new.train(tokenizer.training)


def _check_upgrade(old: TokenizerConfig, new: TokenizerConfig) -> None:
    grows = ("decoder_extra_blocks", "decoder_attention_pairs")
    for name in grows:
        if getattr(new, name, 0) < getattr(old, name, 0):
            raise ValueError(
                f"expected {name} of at least {getattr(old, name)}, found {getattr(new, name)}"
            )
    allowed = grows if getattr(old, "decoder_attention_pairs", 0) else (*grows, "attention_heads")
    changed = [d for d in differences(new, old) if _key(d) not in allowed and not _is_loss(d)]
    if changed:
        raise ValueError("the upstream tokenizer is of another shape: " + "; ".join(changed))


def _key(difference: str) -> str:
    return difference.partition(":")[0]


def _is_loss(difference: str) -> bool:
    """Whether a difference is in the quantizer's losses, which a frozen code space never uses."""
    part, _, name = _key(difference).partition(".")
    return part == "quantizer" and (name.endswith("_weight") or name.startswith("entropy_"))
