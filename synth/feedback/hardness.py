"""The steps that fit class Gaussians to the classifier's features of the real pictures, for the hardness criterion."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from granary.curation.images.limits import DecodeLimits
from granary.curation.runs.run import Output, Run
from granary.synth.feedback.diffusion.checkpoints import LOADING
from granary.synth.feedback.gaussians import ClassGaussians, ClassSums
from granary.synth.feedback.plan import Cell
from granary.synth.feedback.real import read_pictures, real_pictures
from granary.synth.feedback.recipe import Groups, Hardness

if TYPE_CHECKING:  # its module loads torch, which only a worker needs
    from granary.synth.feedback.classifiers import ImageClassifier


@dataclass(frozen=True)
class FeatureUnit:
    """The job of `write_features`.

    Args:
        part: of the data.
        classifier: which one, see `load_classifier`.
        models: fingerprint of the models of the run, so that another classifier of the same name is loaded.
        device: auto, cpu, cuda or cuda:N.
        groups: what divides a class.
        targets: index in the classifier's classes of each label.
        decode: limits on what is decoded.
    """

    part: int
    classifier: str
    models: str
    device: str
    groups: Groups
    targets: Mapping[str, int]
    decode: DecodeLimits


def write_features(run: Run, job: FeatureUnit, output: Output) -> None:
    """Write the classifier's features of the real pictures of one part of the data: target, feature (d,) float32."""
    classifier = _classifier(job.classifier, job.device, job.models)
    labelled = [
        (picture.index, job.targets[picture.cell.label])
        for picture in real_pictures(run, job.groups, job.part)
        if isinstance(picture.cell, Cell)
    ]
    pictures = read_pictures(run, [index for index, _ in labelled], job.decode)
    targets, features = [], []
    for (_, target), picture in zip(labelled, pictures, strict=True):
        if isinstance(picture, Image.Image):
            targets.append(target)
            features.append(_features(classifier, picture, job.device))
        else:
            output.counters["dead"] += 1
    values = pa.array(features, pa.list_(pa.float32()))
    output.write(pa.table({"target": pa.array(targets, pa.int32()), "feature": values}))


@functools.lru_cache(maxsize=1)
def _classifier(spec: str, device: str, models: str) -> ImageClassifier:
    """Load a classifier once per process."""
    from granary.synth.feedback.classifiers import load_classifier

    with LOADING:
        return load_classifier(spec, device)


def _features(classifier: ImageClassifier, picture: Image.Image, device: str) -> NDArray[np.float32]:
    import torch

    from granary.curation.encoders.inference import torch_device

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return classifier.features(pixels.to(torch_device(device)).float() / 255)[0].cpu().numpy()


@dataclass(frozen=True)
class GaussianFit:
    """The job of `write_gaussians`.

    Args:
        classes: number of classes of the classifier.
        options: how covariances are regularised.
    """

    classes: int
    options: Hardness


def write_gaussians(run: Run, job: GaussianFit, output: Output, sums: ClassSums) -> None:
    """Write the class Gaussians fitted to merged sums: name, shape and float32 values of each tensor."""
    options = job.options
    fitted = sums.finish(job.classes, options.tying, options.shrinkage, options.dimensions)
    rows = [
        {"name": name, "shape": list(tensor.shape), "values": tensor.numpy().astype("<f4").tobytes()}
        for name, tensor in fitted.tensors().items()
    ]
    output.counters["missing"] = len(fitted.missing())
    output.write(pa.Table.from_pylist(rows))


def read_gaussians(run: Run) -> ClassGaussians:
    """Return what `write_gaussians` wrote."""
    import torch

    rows = run.read("gaussians", 0).to_pylist()
    arrays = {row["name"]: np.frombuffer(row["values"], "<f4").reshape(row["shape"]).copy() for row in rows}
    return ClassGaussians(**{name: torch.from_numpy(array) for name, array in arrays.items()})
