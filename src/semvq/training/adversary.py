"""The adversarial player of tokenizer training (L_adv of Eq. 2; D7, D8, D13, D14, D16)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from semvq.config import Config
from semvq.files import replace_atomically
from semvq.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    with_gradient,
)
from semvq.losses.discriminators import DiscriminatorConfig
from semvq.training.distributed import World
from semvq.training.optim import OptimConfig
from semvq.training.task import Logs, Player, Turn

FILE = "discriminator.safetensors"


@dataclass(frozen=True)
class AdversarialConfig(Config):
    """The GAN term (D7, D8, D14).

    The discriminator trains from `start` on; the autoencoder feels it `warmup` later, at a weight
    that rises over `ramp`. `adaptive` scales by the gradient ratio at the decoder's last layer.
    """

    discriminator: DiscriminatorConfig
    optim: OptimConfig
    objective: Literal["hinge", "logistic"] = "logistic"
    weight: float = 0.1
    adaptive: bool = False
    start: str = "0 steps"
    warmup: str = "0 steps"
    ramp: str = "0 steps"
    r1_weight: float = 0.0
    r1_every: int = 16  # steps between two lazy R1 penalties


class Adversary:
    """The discriminator, when it trains, when it is felt, and what it adds to either loss.

    `images` turns a duration into images seen; `batch_size` counts images per step.
    """

    def __init__(
        self,
        config: AdversarialConfig,
        resolution: int,
        batch_size: int,
        images: Callable[[str], int],
        device: torch.device,
        world: World,
    ) -> None:
        self.config, self.world = config, world
        self.discriminator = config.discriminator.build(resolution).to(device)
        self.player = Player("discriminator", self.discriminator, config.optim, averaged=False)
        self.start_at = images(config.start)
        self.felt_at = self.start_at + images(config.warmup)
        self.ramp = images(config.ramp)
        self.r1_period = config.r1_every * batch_size

    def weight(self, images_seen: int) -> float:
        """Weight of the GAN term in the autoencoder's loss; 0 until it is felt."""
        if images_seen < self.felt_at:
            return 0.0
        share = (images_seen - self.felt_at + 1) / max(1, self.ramp)
        return self.config.weight * min(1.0, share)

    def added_to(
        self, image_loss: Tensor, reconstruction: Tensor, last_layer: Tensor, weight: float
    ) -> tuple[Tensor, Logs]:
        """Image loss plus the GAN term, whose scale is adaptive when the recipe says so."""
        self.discriminator.requires_grad_(False)
        gan_loss = generator_loss(self.config.objective, self.discriminator(reconstruction))
        self.discriminator.requires_grad_(True)
        logs = {"loss/gan": gan_loss.detach()}
        if not self.config.adaptive:
            return image_loss + weight * gan_loss, logs
        balanced = adaptive_weight(
            image_loss,
            gan_loss,
            reconstruction,
            last_layer,
            scale=weight,
            all_mean=self.world.mean,
        )
        logs["adaptive_weight"] = balanced.weight
        value = image_loss.detach() + balanced.weight * gan_loss.detach()
        return with_gradient(value, reconstruction, balanced.gradient), logs

    def turn(self, images: Tensor, fakes: Tensor, images_seen: int) -> Turn:
        """The discriminator's turn on images and detached reconstructions."""
        config = self.config
        real, fake = self.discriminator(torch.cat([images, fakes])).chunk(2)
        loss = discriminator_loss(config.objective, real, fake)
        logs = {
            "loss/discriminator": loss.detach(),
            "gan/real": real.detach().float().mean(),
            "gan/fake": fake.detach().float().mean(),
        }
        if config.r1_weight > 0 and images_seen % self.r1_period == 0:
            penalty = r1_penalty(self.discriminator, images)
            # lazy: applied every r1_every steps, hence that much stronger
            loss = loss + config.r1_every * config.r1_weight / 2 * penalty
            logs["loss/r1"] = penalty.detach()
        return Turn(self.player.name, loss, logs)

    def take_over(self, upstream: Path) -> None:
        """D13: go on with the discriminator of the upstream run, when it has the same shape."""
        file = upstream / FILE
        weights = load_file(file) if file.exists() else {}
        own = self.discriminator.state_dict()
        if {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}:
            self.discriminator.load_state_dict(weights)
        elif self.felt_at == self.start_at:
            raise ValueError(
                f"{file}: expected the upstream run's discriminator, found "
                f"{'another one' if weights else 'none'}; an untrained one must warm up before it "
                "acts: give --set 'task.adversarial.warmup=2k steps'"
            )

    def export(self, folder: Path) -> None:
        """Its weights, for a later phase."""
        weights = {k: v.contiguous() for k, v in self.discriminator.state_dict().items()}
        replace_atomically(folder / FILE, lambda path: save_file(weights, path))
