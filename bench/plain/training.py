"""Training steps in the plain way: one optimiser per player, nothing fused, nothing shared.

The tokenizer runs forward for either player, and the adaptive weight takes two backward passes of
its own, as taming-transformers has it.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.plain.codes import quantizer_loss
from bench.plain.tokenizer import Weights, codes_of, images_of, latents, lookup
from semvq.tokenizer.quantize import VectorQuantizerConfig
from semvq.training.adversary import AdversarialConfig
from semvq.training.optim import OptimConfig
from semvq.training.tokenizer_task import TokenizerTask

LAST_LAYER = "decoder.conv_out.weight"


class Player:
    """Weights, AdamW and, where `decay` is given, a moving average, one weight at a time."""

    def __init__(self, weights: list[Tensor], config: OptimConfig, decay: float | None) -> None:
        matrices = [w for w in weights if w.ndim >= 2]
        vectors = [w for w in weights if w.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}]
        groups += [{"params": vectors, "weight_decay": 0.0}] if vectors else []
        betas = (config.beta1, config.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas)
        self.weights, self.clip_norm, self.decay = weights, config.clip_norm, decay
        self.average = [w.detach().clone() for w in weights] if decay is not None else []
        self.step_number = 0

    def step(self) -> Tensor:
        """Clip, step and average; the gradient's norm before clipping."""
        grads = [w.grad for w in self.weights if w.grad is not None]
        norm = torch.stack([g.norm() for g in grads]).norm()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        self.optimizer.step()
        self.step_number += 1
        if self.decay is not None:
            share = min(self.decay, (1 + self.step_number) / (10 + self.step_number))
            for mean, weight in zip(self.average, self.weights):
                mean.mul_(share).add_(weight.detach(), alpha=1 - share)
        return norm.detach()


class TokenizerSteps:
    """Steps of either phase, from a task's weights, losses and settings, which it leaves alone."""

    def __init__(
        self, task: TokenizerTask, decay: float, batch_size: int, autocast: Callable
    ) -> None:
        config = task.config
        assert config.adversarial is not None and task.adversary is not None
        assert isinstance(config.tokenizer.quantizer, VectorQuantizerConfig)
        self.gan: AdversarialConfig = config.adversarial
        self.quantizer, self.l1_weight = config.tokenizer.quantizer, config.l1_weight
        self.heads, self.frozen = config.tokenizer.attention_heads, config.freeze_code_space
        self.autocast, self.perceptual = autocast, task.perceptual
        self.discriminator = copy.deepcopy(task.adversary.discriminator)
        self.w: Weights = {}
        for name, parameter in task.tokenizer.named_parameters():
            trains = not (self.frozen and not name.startswith("decoder."))
            copied = parameter.detach().clone(memory_format=torch.contiguous_format)
            self.w[name] = copied.requires_grad_(trains)
        own = [w for w in self.w.values() if w.requires_grad]
        self.autoencoder = Player(own, config.optim, decay)
        self.critic = Player(list(self.discriminator.parameters()), self.gan.optim, None)
        self.seen, self.batch_size = 0, batch_size

    def step(self, pixels: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W); losses and gradient norms of both players, (4,)."""
        images = pixels.float() / 127.5 - 1
        with self.autocast():
            first = self._autoencoder_loss(images)
        first.backward()
        with self.autocast():
            second = self._discriminator_loss(images)
        self.discriminator.zero_grad(set_to_none=True)  # what the autoencoder's loss left there
        second.backward()
        norms = [self.autoencoder.step(), self.critic.step()]
        for player in (self.autoencoder, self.critic):
            player.optimizer.zero_grad(set_to_none=True)
        self.seen += self.batch_size
        return torch.stack([first.detach(), second.detach(), *norms])

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and the codebook's loss."""
        if self.frozen:
            with torch.no_grad():
                embeddings = lookup(self.w, codes_of(self.w, latents(self.w, images)))
            return images_of(self.w, embeddings, self.heads), images.new_zeros(())
        found = latents(self.w, images)
        with torch.autocast(images.device.type, enabled=False):
            loss, _, embeddings = quantizer_loss(
                found, self.w["quantizer.codebook"], self.quantizer
            )
        return images_of(self.w, embeddings, self.heads), loss

    def _autoencoder_loss(self, images: Tensor) -> Tensor:
        reconstruction, code_loss = self._forward(images)
        image_loss = self.l1_weight * F.l1_loss(reconstruction, images)
        image_loss = image_loss + self.perceptual(reconstruction, images)[0]
        logits = self.discriminator(reconstruction).float()
        hinge = self.gan.objective == "hinge"
        gan_loss = -logits.mean() if hinge else F.softplus(-logits).mean()
        weight: float | Tensor = self.gan.weight
        if self.gan.adaptive:
            last = self.w[LAST_LAYER]
            norms = [
                torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm()
                for loss in (image_loss, gan_loss)
            ]
            weight = weight * (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        return image_loss + weight * gan_loss + code_loss

    def _discriminator_loss(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            fakes, _ = self._forward(images)
        real, fake = (self.discriminator(x).float() for x in (images, fakes))
        if self.gan.objective == "hinge":
            loss = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
        else:
            loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        every, weight = self.gan.r1_every, self.gan.r1_weight
        if weight > 0 and self.seen % (every * self.batch_size) == 0:
            wanted = images.detach().requires_grad_(True)
            with torch.autocast(images.device.type, enabled=False):
                logits = self.discriminator(wanted)
                (found,) = torch.autograd.grad(logits.sum(), wanted, create_graph=True)
            loss = loss + every * weight / 2 * found.square().sum((1, 2, 3)).mean()
        return loss


class GeneratorSteps:
    """Steps of a transformer. `loss(weights, drop)` is its plain loss on the batch."""

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        decay: float,
        loss: Callable[[Weights, float], Tensor],
        autocast: Callable,
    ) -> None:
        self.w: Weights = {
            name: parameter.detach().clone().requires_grad_(True)
            for name, parameter in model.named_parameters()
        }
        self.player = Player(list(self.w.values()), optim, decay)
        self.loss, self.autocast = loss, autocast

    def step(self, drop: float) -> Tensor:
        """Loss and gradient norm, (2,)."""
        with self.autocast():
            loss = self.loss(self.w, drop)
        loss.backward()
        norm = self.player.step()
        self.player.optimizer.zero_grad(set_to_none=True)
        return torch.stack([loss.detach(), norm])
