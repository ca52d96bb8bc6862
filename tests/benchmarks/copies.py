"""Measure the built-in descriptors on real pictures: `python -m tests.benchmarks.copies`.

Reads the folder `shared/data` beside the checkout and prints four tables: edits of photographs found at a threshold,
CIFAR-10's known near-duplicates against unlisted removals, links between pictures that are distinct or tiny, and
retrieval precision of builtin:layout against trivial baselines.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from granary.curation.encoders import load_encoder
from tests.places import SHARED

DATA = SHARED
THRESHOLDS = (0.75, 0.80, 0.825, 0.85, 0.875, 0.90, 0.95)
Embed = Callable[[Sequence[Image.Image]], np.ndarray]


def picture(data: bytes) -> Image.Image:
    """Decode a picture, upright and RGB."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def zipped(name: str, **wanted: str) -> Iterator[tuple[dict[str, str], Image.Image]]:
    """Yield record and picture of an archive's members whose record has the `wanted` values."""
    with zipfile.ZipFile(DATA / name) as archive:
        for line in archive.read("manifest.jsonl").decode().splitlines():
            record = json.loads(line)
            if all(record.get(key) == value for key, value in wanted.items()):
                yield record, picture(archive.read(record["file"]))


def flickr() -> list[Image.Image]:
    """Return the 700 captioned pictures."""
    with tarfile.open(DATA / "captions_flickr8k_dev.tar") as archive:
        members = [member for member in archive if member.name.endswith(".jpg")]
        return [picture(archive.extractfile(member).read()) for member in members]  # type: ignore[union-attr]


def cifar10() -> tuple[list[Image.Image], np.ndarray]:
    """Return the 20,000 pictures and their labels."""
    stored = np.load(DATA / "cifar10_dev.npz")
    data, offset = stored["jpeg"], stored["offset"]
    return [picture(data[a:b].tobytes()) for a, b in pairwise(offset)], stored["label"]


def duplicates(judgement: str) -> np.ndarray:
    """Return the listed pairs of CIFAR-10 rows of a judgement: (m, 2) int64."""
    with open(DATA / "cifar10_dev_duplicates.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["judgement"] == judgement]
    return np.array([[int(row["row_a"]), int(row["row_b"])] for row in rows])


def fashion(count: int) -> list[Image.Image]:
    """Return the first `count` Fashion-MNIST test pictures."""
    with gzip.open(DATA / "fashion_mnist" / "t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    return [Image.fromarray(page).convert("RGB") for page in pixels[:count]]


def digits() -> list[Image.Image]:
    """Return scikit-learn's 1,797 digits, 8 x 8 enlarged to 64 x 64."""
    from sklearn.datasets import load_digits

    pages = (load_digits().images * 15.9).astype(np.uint8)
    return [Image.fromarray(page).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB") for page in pages]


def reencoded(image: Image.Image, quality: int) -> Image.Image:
    """Return the picture after JPEG at a quality."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return picture(buffer.getvalue())


def cropped(image: Image.Image, share: float, place: float = 0.5) -> Image.Image:
    """Cut `share` of each side away; place 0 keeps the top left corner, 0.5 the middle."""
    width, height = image.size
    wide, high = round(width * (1 - share)), round(height * (1 - share))
    left, top = round((width - wide) * place), round((height - high) * place)
    return image.crop((left, top, left + wide, top + high))


def marked(image: Image.Image) -> Image.Image:
    """Put a white label over a corner: 3.75% of the picture."""
    image, (width, height) = image.copy(), image.size
    ImageDraw.Draw(image).rectangle((0.72 * width, 0.8 * height, 0.97 * width, 0.95 * height), fill=(255, 255, 255))
    return image


def gamma(image: Image.Image, power: float) -> Image.Image:
    """Apply a tone curve."""
    return image.point([round(255 * (value / 255) ** power) for value in range(256)] * 3)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 20": lambda image: reencoded(image, 20),
    "64 px thumbnail": lambda image: ImageOps.contain(image, (64, 64)),
    "96 px square": lambda image: image.resize((96, 96)),
    "brightness 0.75": lambda image: ImageEnhance.Brightness(image).enhance(0.75),
    "brightness 1.25": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "contrast 1.4": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "gamma 0.7": lambda image: gamma(image, 0.7),
    "saturation 1.6": lambda image: ImageEnhance.Color(image).enhance(1.6),
    "grey": lambda image: ImageEnhance.Color(image).enhance(0),
    "blur 2 px": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "sharpened": lambda image: image.filter(ImageFilter.UnsharpMask(2, 200, 0)),
    "crop 4%": lambda image: cropped(image, 0.04),
    "crop 8%": lambda image: cropped(image, 0.08),
    "crop 8% corner": lambda image: cropped(image, 0.08, 0),
    "crop 15%": lambda image: cropped(image, 0.15),
    "rotated 2 deg": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
    "label in corner": marked,
    "black frame 5%": lambda image: ImageOps.expand(image, round(0.05 * min(image.size)), (0, 0, 0)),
}


def links(vectors: np.ndarray, threshold: float, block: int = 2000) -> np.ndarray:
    """Return all pairs i < j with cosine above a threshold, by brute force: (m, 2)."""
    found = []
    for i in range(0, len(vectors), block):
        for j in range(i, len(vectors), block):
            a, b = np.nonzero(vectors[i : i + block] @ vectors[j : j + block].T > threshold)
            pairs = np.stack([a + i, b + j], axis=1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(found)


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return the component number of each of `count` pictures."""
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1]


def collapse(vectors: np.ndarray, threshold: float) -> str:
    """Say how many pictures are removed as duplicates, and the size of the largest component."""
    sizes = np.bincount(components(len(vectors), links(vectors, threshold)))
    return f"{len(vectors) - len(sizes)}/{sizes.max()}"


def unlisted_removals(labels: np.ndarray, listed: np.ndarray) -> int:
    """Count removed pictures in no listed pair, when each component keeps one, a listed one where it has any."""
    inside = np.zeros(len(labels), bool)
    inside[listed.ravel()] = True
    order = np.lexsort((~inside, labels))
    removed = order[1:][labels[order][1:] == labels[order][:-1]]
    return int((~inside[removed]).sum())


def row(name: str, values: Sequence[object]) -> None:
    """Print a line of a table."""
    print(f"{name:28s}" + "".join(f"{value!s:>12s}" for value in values))


def edit_table(embed: Embed, photos: list[Image.Image], originals: np.ndarray) -> None:
    """Print the share of edited photographs that stay linked to their original."""
    row("edits of 300 photos, % found", THRESHOLDS)
    for name, edit in EDITS.items():
        cosine = np.sum(embed([edit(image) for image in photos[:300]]) * originals[:300], axis=1)
        row(name, [f"{100 * np.mean(cosine > threshold):.1f}" for threshold in THRESHOLDS])
    for kind in ("edits", "exif_orientation"):
        vectors = embed([image for _, image in zipped("near_duplicates_dev.zip", kind=kind)])
        cosine = vectors[1:] @ vectors[0]
        found = [f"{1 + np.sum(cosine > t)}/{len(vectors)}" for t in THRESHOLDS]
        row(f"{kind} (lowest {cosine.min():.3f})"[:28], found)


def cifar_table(vectors: np.ndarray) -> None:
    """Print recall on the near pairs against removals in no listed pair."""
    near, listed = duplicates("near"), np.concatenate([duplicates("near"), duplicates("similar")])
    cosine = np.sum(vectors[near[:, 0]] * vectors[near[:, 1]], axis=1)
    labels = [components(len(vectors), links(vectors, threshold)) for threshold in THRESHOLDS]
    row("CIFAR-10, 20,000 pictures", THRESHOLDS)
    row("near pairs linked, % of 164", [f"{100 * np.mean(cosine > threshold):.1f}" for threshold in THRESHOLDS])
    row("removed, in no listed pair", [unlisted_removals(label, listed) for label in labels])
    row("largest component", [np.bincount(label).max() for label in labels])


def distinct_table(embed: Embed, photos: np.ndarray) -> None:
    """Print removals and the largest component for pictures that are distinct, or tiny on plain ground."""
    sets = {
        "1,000 photos": photos,
        "700 Flickr8k pictures": embed(flickr()),
        "555 renderings": embed([image for _, image in zipped("renderings_dev.zip")]),
        "1,797 digits": embed(digits()),
        "3,000 Fashion-MNIST": embed(fashion(3000)),
    }
    row("removed/largest component", THRESHOLDS)
    for name, vectors in sets.items():
        row(name, [collapse(vectors, threshold) for threshold in THRESHOLDS])
    similarity = photos @ photos.T
    np.fill_diagonal(similarity, -1)
    print(f"largest cosine between two of the 1,000 photos: {similarity.max():.3f}")


def mean_precision(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean average precision and precision at 1 of every picture as a query against the others."""
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    ranked = np.argsort(-similarity, axis=1, kind="stable")[:, :-1]
    relevant = labels[ranked] == labels[:, None]
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    average = np.sum(precision * relevant, axis=1) / relevant.sum(axis=1)
    return float(average.mean()), float(relevant[:, 0].mean())


def knn_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, k: int = 20) -> float:
    """Return the accuracy of a vote of the k nearest, weighted by exp(cosine / 0.07)."""
    similarity = test @ train.T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(test), labels.max() + 1))
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    np.add.at(votes, (np.arange(len(test))[:, None], labels[nearest]), weights)
    return float(np.mean(votes.argmax(axis=1) == truth))


def tiny(side: int) -> Embed:
    """Return the baseline that compares pictures shrunk to side x side pixels."""

    def embed(images: Sequence[Image.Image]) -> np.ndarray:
        pixels = [np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) for image in images]
        rows = np.stack(pixels).reshape(len(images), -1) - 110
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    return embed


def retrieval_table(cifar: list[Image.Image], labels: np.ndarray) -> None:
    """Print retrieval precision of builtin:layout and of baselines."""
    subjects, pictures = zip(*((r["subject"], image) for r, image in zipped("instances_dev.zip")), strict=True)
    cues = list(zipped("renderings_dev.zip", rendering="cue_conflict"))
    order = np.random.default_rng(0).permutation(len(cifar))
    train, test = order[:6000], order[6000:7000]
    row("retrieval", ["subject mAP", "P@1", "CIFAR kNN", "texture P@1", "shape P@1"])
    encoders: dict[str, Embed] = {
        "builtin:layout": load_encoder("builtin:layout").embed,
        "builtin:copy": load_encoder("builtin:copy").embed,
        "mean colour": tiny(1),
        "8 x 8 pixels": tiny(8),
    }
    for name, embed in encoders.items():
        mean, first = mean_precision(embed(pictures), np.unique(subjects, return_inverse=True)[1])
        rendered = embed([image for _, image in cues])
        cue = [np.unique([r[key] for r, _ in cues], return_inverse=True)[1] for key in ("texture_class", "shape_class")]
        known, asked = embed([cifar[i] for i in train]), embed([cifar[i] for i in test])
        accuracy = knn_accuracy(known, labels[train], asked, labels[test])
        scores = [mean, first, accuracy, *(mean_precision(rendered, truth)[1] for truth in cue)]
        row(name, [f"{score:.3f}" for score in scores])


def main() -> None:
    """Print all tables, and the pictures embedded per second of processor time."""
    photos = [image for _, image in zipped("photos_dev.zip")]
    for spec in ("builtin:copy", "builtin:layout"):
        embed = load_encoder(spec).embed
        start = time.process_time()
        vectors = embed(photos)
        print(f"{spec}: {vectors.shape[1]} dimensions, {1000 / (time.process_time() - start):.0f} pictures/s of a core")
    embed = load_encoder("builtin:copy").embed
    originals = embed(photos)
    edit_table(embed, photos, originals)
    cifar, labels = cifar10()
    cifar_table(embed(cifar))
    distinct_table(embed, originals)
    retrieval_table(cifar, labels)


if __name__ == "__main__":
    main()
