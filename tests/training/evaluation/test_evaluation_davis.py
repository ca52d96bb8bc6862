"""J and F on hand-made masks, against brute force; label propagation against a triple loop."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import measure
from PIL import Image
from places import SHARED

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.training.evaluation.davis import boundary, boundary_accuracy, over_time, region_similarity
from granary.training.evaluation.protocols import segmentation
from granary.training.evaluation.protocols.segmentation import SegmentationOptions, first_labels, full_size, propagate
from granary.training.evaluation.videos import Videos

FRAMES = SHARED / "video_frames_dev.zip"


def square(top: int, left: int, side: int, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    """The rule of DAVIS, pixel by pixel."""
    h, w = mask.shape
    found = np.zeros_like(mask)
    for y in range(h):
        for x in range(w):
            near = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == h - 1:
                near = [(y, x + 1)]
            if x == w - 1:
                near = [(y + 1, x)]
            found[y, x] = any(mask[y, x] != mask[b, a] for b, a in near if b < h and a < w)
    return found


def slow_accuracy(found: np.ndarray, truth: np.ndarray, radius: int) -> float:
    """Dilate each boundary by a disk and intersect."""
    h, w = found.shape
    mine, theirs = slow_boundary(found), slow_boundary(truth)

    def dilated(mask: np.ndarray) -> np.ndarray:
        wide = np.zeros_like(mask)
        for y, x in np.argwhere(mask):
            for b in range(max(0, y - radius), min(h, y + radius + 1)):
                for a in range(max(0, x - radius), min(w, x + radius + 1)):
                    wide[b, a] |= (a - x) ** 2 + (b - y) ** 2 <= radius**2
        return wide

    if not mine.any() and not theirs.any():
        return 1.0
    if not mine.any() or not theirs.any():
        return 0.0
    precision, recall = (mine & dilated(theirs)).sum() / mine.sum(), (theirs & dilated(mine)).sum() / theirs.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_region_similarity_of_squares() -> None:
    assert region_similarity(square(5, 5, 10), square(5, 5, 10)) == 1.0
    assert region_similarity(square(5, 5, 10), square(5, 10, 10)) == pytest.approx(50 / 150)
    assert region_similarity(square(0, 0, 5), square(20, 20, 5)) == 0.0
    empty = np.zeros((40, 60), bool)
    assert region_similarity(empty, empty) == 1.0
    assert region_similarity(empty, square(0, 0, 5)) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_boundaries_and_f_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((14, 19)) < share for share in (0.2, 0.7)]
    masks += [square(int(rng.integers(9)), int(rng.integers(12)), int(rng.integers(1, 9)), (14, 19)) for _ in range(3)]
    for one in masks:
        assert np.array_equal(boundary(one), slow_boundary(one))
        for other in masks:
            for radius in (1, 2, 3):
                assert boundary_accuracy(one, other, radius) == pytest.approx(slow_accuracy(one, other, radius))


def test_f_of_shifted_squares_and_empty_masks() -> None:
    truth = square(10, 10, 20)
    assert boundary_accuracy(truth, truth) == 1.0
    assert math.ceil(0.008 * math.hypot(40, 60)) == 1  # pixels of tolerance here
    assert boundary_accuracy(square(10, 11, 20), truth) == 1.0  # off by the tolerance
    assert boundary_accuracy(square(14, 15, 20), truth) < 0.2
    empty = np.zeros((40, 60), bool)
    assert boundary_accuracy(empty, empty) == 1.0
    assert boundary_accuracy(empty, truth) == boundary_accuracy(truth, empty) == 0.0


def test_statistics_over_time() -> None:
    found = over_time([1.0, 0.8, 0.6, 0.4, 0.2])  # quarters share their ends: frames 0..1 and 3..4
    assert found == {"mean": pytest.approx(0.6), "recall": pytest.approx(0.6), "decay": pytest.approx(0.9 - 0.3)}
    assert over_time([0.5]) == {"mean": 0.5, "recall": 0.0, "decay": 0.0}  # half is not above a half


def test_propagation_equals_a_triple_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns, options = 4, 5, SegmentationOptions(before=2, radius=1, k=3, temperature=0.1)
    draw = lambda: torch.nn.functional.normalize(torch.randn(rows, columns, 6, generator=generator), dim=2)  # noqa: E731
    features, frames = draw(), [draw() for _ in range(3)]
    labels = [torch.rand(rows, columns, 2, generator=generator) for _ in frames]
    found = propagate(features, list(zip(frames, labels, strict=True)), options)
    for y in range(rows):
        for x in range(columns):
            near = [
                (float(features[y, x] @ frame[b, a]), label[b, a])
                for frame, label in zip(frames, labels, strict=True)
                for b in range(rows)
                for a in range(columns)
                if abs(b - y) <= 1 and abs(a - x) <= 1
            ]
            best = sorted(near, key=lambda pair: -pair[0])[:3]
            weights = [math.exp(cosine / 0.1) for cosine, _ in best]
            expected = sum(w * label for w, (_, label) in zip(weights, best, strict=True)) / sum(weights)
            torch.testing.assert_close(found[y, x], expected, atol=1e-5, rtol=1e-5)


def test_pieces_of_a_frame_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.nn.functional.normalize(torch.randn(6, 7, 5, generator=generator), dim=2)
    context = [(features.flip(0), torch.rand(6, 7, 3, generator=generator))]
    whole = propagate(features, context, SegmentationOptions())
    monkeypatch.setattr(segmentation, "TARGETS", 5)
    torch.testing.assert_close(propagate(features, context, SegmentationOptions()), whole)


def test_a_still_video_keeps_its_mask() -> None:
    mask = square(8, 16, 16, (32, 64)).astype(np.uint8) * 3
    numbers = np.array([0, 3], np.uint8)
    labels = first_labels(mask, numbers, (8, 16))
    assert labels[..., 1].sum() == 16
    features = torch.nn.functional.normalize(torch.randn(8, 16, 64, generator=torch.Generator().manual_seed(2)), dim=2)
    same = propagate(features, [(features, labels)], SegmentationOptions(k=1))
    torch.testing.assert_close(same, labels)
    back = numbers[full_size(same, mask.shape).argmax(dim=0).numpy()]
    assert region_similarity(back == 3, mask == 3) > 0.8


def png(image: np.ndarray, mode: str = "L") -> bytes:
    file, picture = io.BytesIO(), Image.fromarray(image)
    if mode == "P":
        picture = Image.fromarray(image, "L")
        palette = Image.new("P", picture.size)
        palette.putdata(picture.tobytes())
        palette.putpalette([value for n in range(256) for value in (n, 255 - n, 7 * n % 256)])
        picture = palette
    picture.save(file, "PNG")
    return file.getvalue()


def moving(path: Path, frames: int = 6, broken: str = "") -> Path:
    """Write a zip in which a red square moves over a noisy ground."""
    ground = np.random.default_rng(0).integers(0, 90, (64, 96, 3), dtype=np.uint8)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(frames):
            mask = square(16, 8 + 6 * number, 32, (64, 96))
            picture = np.where(mask[..., None], np.array([230, 30, 40], np.uint8), ground)
            files = {"frames": png(picture), "masks": png(mask * np.uint8(255))}
            for name, data in ((f"{kind}/ball/{number:05d}.png", data) for kind, data in files.items()):
                archive.writestr(name, data[:40] if name == broken else data)
    return path


def test_pixels_follow_a_red_square_better_than_standing_still(tmp_path: Path) -> None:
    scores = measure(segmentation, "pixels", str(moving(tmp_path / "a.zip")), rows=16, device="cpu")
    assert scores["J"] is not None
    assert scores["J.first_mask"] is not None
    assert scores["J"] > 0.75 > scores["J.first_mask"]
    assert scores["J&F"] == pytest.approx((scores["J"] + scores["F"]) / 2)
    assert (scores["J&F.sequences"], scores["J&F.objects"], scores["J&F.frames"]) == (1, 1, 4)  # not first, not last
    shifts = [32 * max(0, 32 - 6 * n) / (2 * 32 * 32 - 32 * max(0, 32 - 6 * n)) for n in range(1, 5)]
    assert scores["J.first_mask"] == pytest.approx(np.mean(shifts))


def test_a_folder_in_the_layout_of_davis_is_the_same(tmp_path: Path) -> None:
    archive = moving(tmp_path / "a.zip")
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            kind, video, frame = name.split("/")
            folder = tmp_path / "davis" / {"frames": "JPEGImages", "masks": "Annotations"}[kind] / "480p" / video
            folder.mkdir(parents=True, exist_ok=True)
            (folder / frame).write_bytes(file.read(name))
    from_folder = measure(segmentation, "pixels", str(tmp_path / "davis"), rows=8, device="cpu")
    assert from_folder == measure(segmentation, "pixels", str(archive), rows=8, device="cpu")


def test_what_is_broken_is_lost_alone_and_named(tmp_path: Path) -> None:
    path = moving(tmp_path / "a.zip", broken="frames/ball/00002.png")
    scores = measure(segmentation, "pixels", str(path), rows=8, device="cpu")
    assert scores["J&F.frames"] == 3
    assert [row["uri"] for row in scores.settings["dead"]] == [f"{path}#frames/ball/00002.png"]
    assert "1 frames or masks cannot be decoded" in scores.notes[0]
    with pytest.raises(UserError, match=r"no sequence of .* could be measured"):
        measure(
            segmentation, "pixels", str(moving(tmp_path / "b.zip", broken="masks/ball/00000.png")), rows=8, device="cpu"
        )


def test_a_mask_of_another_size_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    moving(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            other = name == "masks/ball/00003.png"
            new.writestr(name, png(np.zeros((8, 8), np.uint8)) if other else old.read(name))
    scores = measure(segmentation, "pixels", str(path), rows=8, device="cpu", dtype="bfloat16")
    assert scores["J&F.frames"] == 3
    assert "a mask of (8, 8) pixels" in scores.settings["dead"][0]["message"]


def test_masks_of_several_objects(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[2:8, 2:8], labels[10:18, 12:20], labels[0, 29] = 1, 2, 255
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(2):
            archive.writestr(f"DAVIS/JPEGImages/480p/x/{number}.png", png(np.stack([labels * 90] * 3, axis=2)))
            archive.writestr(f"DAVIS/Annotations/480p/x/{number}.png", png(labels, "P"))
    videos = Videos(str(tmp_path / "a.zip"))
    mask = videos.mask("DAVIS/Annotations/480p/x/0.png")
    assert np.unique(mask).tolist() == [0, 1, 2]
    assert np.array_equal(mask == 2, labels == 2)
    scores = measure(segmentation, "pixels", str(tmp_path / "a.zip"), rows=8, device="cpu")
    assert scores["J&F.objects"] == 2
    assert scores["J.first_mask"] == 1.0
    with pytest.raises(DecodeError):
        Videos(str(moving(tmp_path / "c.zip", broken="masks/ball/00001.png"))).mask("masks/ball/00001.png")


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be read as a zip file"):
        Videos(str(tmp_path / "a.zip"))
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="has no sequence with a mask of its first frame"):
            Videos(str(path))
    with pytest.raises(UserError, match="must be above 0"):
        measure(segmentation, "pixels", str(moving(tmp_path / "b.zip")), k=0)


@pytest.mark.skipif(not FRAMES.exists(), reason="the folder shared beside the checkout is absent")
def test_davis_masks_against_themselves() -> None:
    videos = Videos(str(FRAMES))
    assert len(videos.sequences) == 9
    video = videos.sequences[0]
    mask = videos.mask(video.masks[video.frames[0]]) == 1
    assert mask.mean() == pytest.approx(0.10071, abs=2e-5)  # the manifest's mask_fraction
    shifted = np.roll(mask, 2, axis=1)
    assert boundary_accuracy(mask, mask) == 1.0
    assert boundary_accuracy(shifted, mask) == pytest.approx(slow_accuracy(shifted, mask, 4), abs=1e-9)
