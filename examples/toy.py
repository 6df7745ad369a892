"""The whole method in one file, for reading: no part of the package is used.

    python examples/toy.py src/semvq/photos/fruit-train.tar --out toy.png

Photos in a tar file, `<class>/<file>`, become 32 px images; a small classifier learns the classes,
and its layers are the perceptual network. Then SeQ-GAN's four steps (Gu et al., CVPR 2024):

1. phase 1 (Sec. 3.3): encoder, codebook, decoder with the semantic loss, whose codes are easy to
   model;
2. phase 2 (Sec. 3.4): codes frozen, a decoder with attention learns the details;
3. a transformer learns the codes of an image one after the other, given its class;
4. sampling: the transformer draws codes, the decoder of phase 2 turns them into images.

Sizes are such that one CPU core needs some five minutes; nothing here is a result.
"""

import tarfile
from argparse import ArgumentParser
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

SIDE, GRID, CODES, DIM = 32, 8, 256, 64  # pixels, codes a side, codebook size, width of a code
BATCH = 32

# --- photos ---------------------------------------------------------------------------------------


def load(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Images (N, 3, 32, 32) in [-1, 1], classes (N,), names of the classes."""
    images, names = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            if file := tar.extractfile(member):
                image = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
                images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
                names.append(member.name.split("/")[0])
    classes = sorted(set(names))
    return torch.stack(images), torch.tensor([classes.index(n) for n in names]), classes


def batches(images: Tensor, labels: Tensor, steps: int):
    """`steps` random batches, mirrored half of the time."""
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,))
        x = images[rows]
        yield torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x, x.flip(3)), labels[rows]


# --- networks -------------------------------------------------------------------------------------


def conv(a: int, b: int, stride: int = 1) -> nn.Module:
    """Normalise, activate, convolve."""
    return nn.Sequential(nn.GroupNorm(8, a), nn.SiLU(), nn.Conv2d(a, b, 3, stride, 1))


class Classifier(nn.Module):
    """Layers from fine to coarse, and the logits: what images are compared by (Sec. 3.3)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 4, 2, 1)
        self.low = conv(32, 32)
        self.high = nn.Sequential(conv(32, 64, 2), conv(64, 64, 2))
        self.logits = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low layer, semantic layer, logits."""
        low = self.low(self.first(x))
        high = self.high(low)
        return low, high, self.logits(high.mean((2, 3)))


class Attention(nn.Module):
    """Every place of a map looks at every other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        rows = self.norm(x).flatten(2).mT
        found = self.attention(rows, rows, rows, need_weights=False)[0]
        return x + found.mT.reshape(x.shape)


def encoder() -> nn.Module:
    """Images (B, 3, 32, 32) to latents (B, DIM, 8, 8)."""
    return nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), conv(32, 64, 2), conv(64, 64), conv(64, DIM))


def decoder(attention: bool) -> nn.Module:
    """Embeddings (B, DIM, 8, 8) to images (B, 3, 32, 32)."""
    inside = [Attention(64), conv(64, 64)] if attention else []
    up = [nn.Upsample(scale_factor=2), conv(64, 64), conv(64, 4 * 3), nn.PixelShuffle(2)]
    return nn.Sequential(nn.Conv2d(DIM, 64, 3, 1, 1), *inside, conv(64, 64), *up)


class Codebook(nn.Module):
    """The nearest code for each latent, and what keeps codes in use (Eq. 2, 4, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(CODES, DIM) * 0.1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, DIM, h, w) to embeddings with a straight-through gradient, codes, a loss."""
        rows = z.permute(0, 2, 3, 1).reshape(-1, DIM)
        distances = torch.cdist(rows, self.codes).square()
        codes = distances.argmin(1)
        found = self.codes[codes]
        loss = F.mse_loss(found, rows.detach()) + 0.25 * F.mse_loss(rows, found.detach())
        # -entropy of the mean assignment: low where all codes are used alike
        mean = (-distances / distances.mean().detach() * 10).softmax(1).mean(0)
        loss = loss + 0.02 * (mean * mean.clamp_min(1e-9).log()).sum()
        out = (rows + (found - rows).detach()).view(len(z), *z.shape[2:], DIM).permute(0, 3, 1, 2)
        return out, codes.view(len(z), *z.shape[2:]), loss

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) to embeddings."""
        return self.codes[codes].permute(0, 3, 1, 2)


class NoCodes(nn.Module):
    """What stands for the codebook until the encoder has something to say."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, float]:
        """Latents as they are."""
        return z, torch.zeros(0), 0.0


class Transformer(nn.Module):
    """Next-code prediction over [class, code, code, …] (Sec. 3.1)."""

    def __init__(self, num_classes: int, width: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(CODES + num_classes, width)
        self.places = nn.Parameter(torch.randn(GRID * GRID, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CODES)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Codes so far (B, n) and classes (B,) to logits (B, n + 1, CODES)."""
        x = self.embed(torch.cat([CODES + labels[:, None], codes], 1)[:, : GRID * GRID])
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.layers(x + self.places[: x.shape[1]], mask, is_causal=True))

    @torch.no_grad()
    def sample(self, labels: Tensor, top_k: int = 64) -> Tensor:
        """Codes (B, 8, 8) of classes (B,), of the `top_k` likeliest each time."""
        codes = torch.zeros(len(labels), 0, dtype=torch.int64)
        for _ in range(GRID * GRID):
            best = self(codes, labels)[:, -1].topk(top_k)
            drawn = torch.multinomial(best.values.softmax(1), 1)
            codes = torch.cat([codes, best.indices.gather(1, drawn)], 1)
        return codes.view(-1, GRID, GRID)


# --- training -------------------------------------------------------------------------------------


def perceptual(net: Classifier, fake: Tensor, real: Tensor, alpha: float) -> Tensor:
    """alpha of the semantic layers and the logits, 1 - alpha of the low layer (Eq. 6)."""
    parts = [F.mse_loss(a, b) / b.square().mean() for a, b in zip(net(fake), net(real))]
    return (1 - alpha) * parts[0] + alpha * (parts[1] + parts[2])


def adam(*modules: nn.Module, rate: float = 1e-3) -> torch.optim.Optimizer:
    """One optimiser for all their parameters."""
    return torch.optim.Adam(chain(*(m.parameters() for m in modules)), rate, betas=(0.5, 0.95))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Go downhill once."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_classifier(net: Classifier, data, steps: int) -> None:
    """Learn the classes; frozen afterwards."""
    optimizer = adam(net)
    for x, y in batches(*data, steps):
        step(optimizer, F.cross_entropy(net(x)[2], y))
    net.requires_grad_(False)


def train_tokenizer(parts, judge: nn.Module, net: Classifier, data, steps: int, alpha: float):
    """One phase: `parts` are encoder, codebook, decoder; those without gradients stay as they are.

    `judge` tells patches of photos from patches of reconstructions (hinge loss).
    """
    encode, book, decode = parts
    learning = [p for p in parts if all(q.requires_grad for q in p.parameters())]
    optimizer, of_judge = adam(*learning), adam(judge)
    for x, _ in batches(*data, steps):
        found, _, codes_loss = book(encode(x))
        fake = decode(found)
        loss = F.l1_loss(fake, x) + perceptual(net, fake, x, alpha) - 0.02 * judge(fake).mean()
        step(optimizer, loss + codes_loss)  # of frozen codes it has no gradient
        wrong = F.relu(1 - judge(x)).mean() + F.relu(1 + judge(fake.detach())).mean()
        step(of_judge, wrong)
    with torch.no_grad():
        x = data[0][:200]
        found, codes, _ = book(encode(x))
        error = F.mse_loss(decode(found), x)
    used = f", {len(codes.unique()) / CODES:.0%} of the codes used" if len(codes) else ""
    print(f"PSNR {10 * torch.log10(4 / error):.1f} dB{used}", flush=True)


def train_transformer(model: Transformer, codes: Tensor, labels: Tensor, steps: int) -> None:
    """Cross-entropy of each code given those before it."""
    optimizer, flat = adam(model, rate=5e-4), codes.flatten(1)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(flat), (BATCH,))
        logits = model(flat[rows, :-1], labels[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), flat[rows].flatten())
        step(optimizer, loss)
        losses.append(loss.item())
    last = np.mean(losses[-20:])
    print(f"{last:.2f} nats a code (any code alike: {np.log(CODES):.2f})", flush=True)
    model.eval()


def grid(rows: list[Tensor]) -> Image.Image:
    """A row of images (N, 3, 32, 32) below another."""
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1)
    pixels = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def main() -> None:
    """All four steps."""
    p = ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("photos", type=Path, help="tar file, <class>/<file>")
    p.add_argument("--out", type=Path, default=Path("toy.png"))
    p.add_argument("--steps", type=int, default=250, help="of each training (%(default)s)")
    options = p.parse_args()
    torch.manual_seed(0)
    images, labels, classes = load(options.photos)
    data = (images, labels)
    net = Classifier(len(classes))
    train_classifier(net, data, options.steps)

    encode, book, decode = encoder(), Codebook(), decoder(attention=False)
    judge = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), conv(32, 64, 2), conv(64, 1))
    print("without codes: ", end="")
    train_tokenizer((encode, NoCodes(), decode), judge, net, data, options.steps, alpha=0.0)
    with torch.no_grad():  # codes start as latents of photos
        found = encode(images[torch.randint(len(images), (64,))]).permute(0, 2, 3, 1)
        book.codes.copy_(found.reshape(-1, DIM)[torch.randperm(64 * GRID * GRID)[:CODES]])
    print("phase 1, semantic: ", end="")
    train_tokenizer((encode, book, decode), judge, net, data, options.steps, alpha=1.0)

    nn.ModuleList([encode, book]).requires_grad_(False)
    better = decoder(attention=True)
    print("phase 2, details: ", end="")
    train_tokenizer((encode, book, better), judge, net, data, options.steps, alpha=0.0)

    with torch.no_grad():
        codes = torch.cat([book(encode(part))[1] for part in images.split(256)])
    model = Transformer(len(classes))
    print("transformer: ", end="")
    train_transformer(model, codes, labels, 2 * options.steps)

    columns = torch.arange(len(classes))
    with torch.no_grad():
        some = torch.stack([images[labels == c][0] for c in columns])
        again = [d(book(encode(some))[0]) for d in (decode, better)]
        drawn = [better(book.lookup(model.sample(columns))) for _ in range(3)]
    grid([some, *again, *drawn]).save(options.out)
    print(f"{options.out}: photos, phase 1, phase 2, three rows of samples")


if __name__ == "__main__":
    main()
