"""Frozen networks: the right function, differentiable, and out of everybody's way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semvq import assets
from semvq.backbones.efficientnet_lite import load_efficientnet_lite0
from semvq.backbones.frozen import FrozenConv, Normalize, fold_batch_norm
from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.backbones.vgg import LAYERS, VGG16Classifier, load_lpips_linear, load_vgg16
from semvq.data.images import DataConfig, ImageSet, eval_batches, to_float
from semvq.photos import fruit

# numbers of ImageNet's classes; heaps of oranges pass for lemons with both networks
GRANNY_SMITH, ORANGE, LEMON = 948, 950, 951
ENDS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


@pytest.fixture(scope="module")
def vgg():
    return load_vgg16()


@pytest.fixture(scope="module")
def classifiers():
    return {"lite0": load_efficientnet_lite0(), "mobilenet": load_mobilenet_v2()}


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def plain_vgg() -> nn.Sequential:
    """torchvision's `features`, written down once more and loaded by its own names."""
    layers, channels = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers += [nn.MaxPool2d(2)]
    model = nn.Sequential(*layers)
    weights = assets.load("vgg16")
    model.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()})
    return model


def test_vgg_equals_a_plain_one(vgg):
    images = noise(2, 3, 32, 48)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x, expected = ((images + 1) / 2 - mean) / std, {}
    with torch.no_grad():
        names = iter(LAYERS)
        for layer in plain_vgg():
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                expected[next(names)] = x
        found = vgg(images, LAYERS)
    assert list(found) == list(LAYERS)
    for name in LAYERS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


def test_vgg_shapes_and_depth(vgg):
    ran = []
    hooks = [c.register_forward_hook(lambda *a: ran.append(1)) for c in vgg.convs]
    found = vgg(noise(1, 3, 32, 32), ("relu2_2",))
    for hook in hooks:
        hook.remove()
    assert found["relu2_2"].shape == (1, 128, 16, 16)
    assert len(ran) == 4, "computed no deeper than asked"
    widths = [vgg(noise(1, 3, 32, 32), ENDS)[n].shape[1:] for n in ENDS]
    assert widths == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    assert vgg(noise(1, 3, 32, 32), ()) == {}


def test_vgg_mistakes(vgg):
    with pytest.raises(ValueError, match="found relu6_1"):
        vgg(noise(1, 3, 32, 32), ("relu6_1",))
    with pytest.raises(ValueError, match="large enough for relu5_1, found"):
        vgg(noise(1, 3, 8, 8), ("relu5_3",))
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), found \(3, 32, 32\)"):
        vgg(noise(3, 32, 32), ("relu1_2",))


def test_vgg_classifier_reads_torchvisions_layout():
    weights = dict(assets.load("vgg16"))
    shapes = {0: (8, 512 * 49), 3: (8, 8), 6: (1000, 8)}
    dense = {i: nn.Linear(n, m) for i, (m, n) in shapes.items()}
    for i, layer in dense.items():
        weights |= {f"classifier.{i}.{k}": v for k, v in layer.state_dict().items()}
    images = noise(1, 3, 224, 224)
    with torch.no_grad():
        x = plain_vgg()(Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images))
        expected = dense[6](F.relu(dense[3](F.relu(dense[0](x.contiguous().flatten(1))))))
        found = VGG16Classifier(weights)(images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_lpips_weights_fit_the_layers(vgg):
    weights = load_lpips_linear()
    assert {n: len(w) for n, w in weights.items()} == dict(zip(ENDS, (64, 128, 256, 512, 512)))
    assert all((w >= 0).all() and w.max() > 0 for w in weights.values())


@pytest.mark.parametrize("name", ["vgg", "lite0", "mobilenet"])
def test_frozen_means_out_of_the_way(name, vgg, classifiers):
    model = vgg if name == "vgg" else classifiers[name]
    assert not list(model.parameters()) and not model.state_dict()

    def run(images: torch.Tensor) -> torch.Tensor:
        return model(images, ("relu2_2",))["relu2_2"] if name == "vgg" else model(images)

    images = noise(2, 3, 64, 64)
    before = run(images)
    model.train()
    assert torch.equal(run(images), before)
    images.requires_grad_()
    run(images).square().mean().backward()
    assert images.grad is not None and images.grad.isfinite().all() and images.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["lite0", "mobilenet"])
def test_classifiers_know_fruit(name, classifiers):
    """The weights, the normalisation and the class order, on photos no weight has seen."""
    photos = ImageSet.open(fruit()[1])
    config = DataConfig(resolution=64)
    for folder, numbers in (("Granny-Smith", {GRANNY_SMITH}), ("Orange", {ORANGE, LEMON})):
        label = photos.classes.index(folder)
        chosen = photos.subset([i for i, k in enumerate(photos.labels) if k == label]).spread(12)
        images = to_float(next(eval_batches(chosen, config, 12))["image"])
        images = F.interpolate(images, size=(224, 224), mode="bicubic", antialias=True)
        with torch.inference_mode():
            logits = classifiers[name](images.clamp(-1, 1))
        assert logits.shape == (len(images), 1000)
        assert int(logits.softmax(1).mean(0).argmax()) in numbers


def test_classifiers_take_any_size(classifiers):
    for model in classifiers.values():
        assert model(noise(2, 3, 33, 70)).shape == (2, 1000)
        assert model.features(noise(1, 3, 64, 64)).shape == (1, 1280)


def test_folded_batch_norm_is_batch_norm():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, eps=1e-3)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.1, 2)
    weights = {"c.weight": conv.weight} | {f"n.{k}": v for k, v in norm.state_dict().items()}
    folded = FrozenConv(*fold_batch_norm(weights, "c", "n", 1e-3), padding=0)
    images = noise(2, 3, 8, 8)
    torch.testing.assert_close(folded(images), norm.eval()(conv(images)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_same_padding_is_tensorflows(size):
    """ceil(size / stride) outputs, the odd pixel of padding after."""
    weight, images = noise(1, 1, 3, 3), noise(1, 1, size, size)
    pads = (1, 1, 1, 1) if size % 2 else (0, 1, 0, 1)
    expected = F.conv2d(F.pad(images, pads), weight, stride=2)
    found = FrozenConv(weight, torch.zeros(1), stride=2)(images)
    assert found.shape[-1] == -(-size // 2)
    torch.testing.assert_close(found, expected)
