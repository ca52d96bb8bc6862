"""Protocol diffusion-classifier: the class under which a sampling model best predicts the noise put on a picture.

Li et al. 2023 (arXiv 2303.16203), Clark and Jaini 2023 (arXiv 2303.15233): with equal priors the likeliest class is
about that with the least mean squared error of the noise. All classes and all pictures meet the same noises at the same
times, so that only what classes say of a picture differs; each class is a pass of its own, so that equal ones tie.
Shapes: B pictures of (c, h, w), C classes, K noises.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError, needs
from granary.synth.feedback.diffusion.checkpoints import LOADING
from granary.synth.feedback.diffusion.interfaces import Pipeline
from granary.training.data import shards
from granary.training.data.crops import Crop
from granary.training.data.passes import in_order
from granary.training.evaluation.protocol import Measured, Protocol, SplitOptions
from granary.training.evaluation.protocols.zeroshot import top_accuracies, wrong_above
from granary.training.evaluation.scores import DeadLetter, Scores, dead_letter

NOTES = ("A class is scored by the error of the noise that the model predicts under it; equal scores are wrong.",)
DTYPES = ("float32", "float16", "bfloat16")
Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]  # sample (B, c, h, w), time (), classes (B,) -> output


class BayesOptions(SplitOptions, frozen=True):
    """Options of diffusion classifiers."""

    noises: int = Field(32, ge=1, description="noises that each picture meets, at times evenly spread between the ends")
    first: float = Field(0.0, ge=0, lt=1, description="share of the noise levels that are left out at the clear end")
    last: float = Field(1.0, gt=0, le=1, description="share of the noise levels that are used, from the clear end on")


def evaluate(measured: Measured, options: BayesOptions) -> Scores:
    """Classify the labelled pictures of a dataset by a class-conditional sampling model; default: all rows.

    Returns:
        top1 and top5 with `.chance`, and for top1 the mean over classes; the share of pictures for which the best two
        classes tie; the number of pictures, of those without a label that the model knows, and of unreadable ones.

    Raises:
        UserError: the model has no classes or paints no pixels, or the data have none of its classes.
    """
    if options.first >= options.last:
        raise UserError(f"options.first: {options.first} is not right; it must be below options.last, {options.last}")
    needed, why = ("image", "label"), "a diffusion classifier"
    dataset = shards.open_dataset(measured.data, needed, measured.split, options.holdout, why, measured.columns)
    denoiser = PixelDenoiser(*_loaded(measured), measured.model)
    known = denoiser.classes
    if not set(known) & set(shards.class_names([dataset])):
        raise UserError(f"data: no label of {measured.data} is a class of the model; it has {', '.join(known[:20])}")
    noise = denoiser.noise(options, measured.seed)
    errors, labels, dead, read = list[Tensor](), list[Tensor](), list[DeadLetter](), 0
    for part in in_order(dataset, denoiser.crop, needed, known, measured.batch, measured.limit):
        dead += [dead_letter(*row) for row in part["dead"]]
        read += len(part["id"])
        labelled = part["label"] >= 0 if part["id"] else torch.zeros(0, dtype=torch.bool)
        if labelled.any():
            errors.append(denoiser.errors(part["image"][labelled, 0], noise))
            labels.append(part["label"][labelled])
    if not labels:
        raise UserError(f"data: {measured.data} has no picture that can be decoded and has a class of the model")
    return Scores(
        {
            **of_errors(torch.cat(errors), torch.cat(labels)),
            "pictures": len(torch.cat(labels)),
            "pictures.unlabelled": read - len(torch.cat(labels)),
            "pictures.unreadable": len(dead),
            "pictures.classes": len(known),
        },
        settings={"dead": dead, "times": noise[0].tolist()},
    )


PROTOCOL = Protocol(evaluate, BayesOptions, ("split", "batch", "limit", "seed"), 16, NOTES)


def _loaded(measured: Measured) -> tuple[Pipeline, torch.device]:
    if measured.dtype not in DTYPES:
        raise UserError(f"dtype: {measured.dtype!r} is not right; the types are {', '.join(DTYPES)}")
    device = torch_device(measured.device)
    with needs("sample"):
        from granary.synth.feedback.diffusion.loading import load_pipeline
    with LOADING:
        return load_pipeline(measured.model, None, device, measured.dtype)[0], device


class PixelDenoiser:
    """A class-conditional model of pixels, as granary trains them, and its noise levels.

    Args:
        pipe: of `load_pipeline`.
        device: where it is.
        name: of the model, for messages.

    Attributes:
        classes: C names.
        crop: how pictures are cut for it.

    Raises:
        UserError: it is another kind of model, or has no classes.
    """

    def __init__(self, pipe: Pipeline, device: torch.device, name: str) -> None:
        classes = getattr(pipe, "classes", None)
        if type(pipe).__name__ != "ClassConditionalPipeline" or not classes:
            raise UserError(
                f"model: {name} is a {type(pipe).__name__}; give a class-conditional model of pixels with "
                "id2label in its model_index.json"
            )
        if not hasattr(pipe.scheduler, "alphas_cumprod"):
            raise UserError(f"model: {name} has a {type(pipe.scheduler).__name__}, which puts no noise on pictures")
        self.unet = pipe.components["unet"]
        self.device, self.classes = device, list(classes)
        self.config = self.unet.config  # type: ignore[attr-defined]
        side = self.config["sample_size"]
        self.crop = Crop(1, side if isinstance(side, int) else min(side), centre=True)
        self.alphas = pipe.scheduler.alphas_cumprod.double().cpu()
        self.prediction = pipe.scheduler.config.prediction_type

    def noise(self, options: BayesOptions, seed: int) -> tuple[Tensor, Tensor]:
        """Return the times (K,) int64, ascending, and the noises (K, c, h, w) on the CPU.

        Args:
            options: how many, and between which ends.
            seed: of the noises.
        """
        low, high = options.first * len(self.alphas), options.last * len(self.alphas)
        places = low + (torch.arange(options.noises) + 0.5) * (high - low) / options.noises
        shape = (options.noises, self.config["in_channels"], self.crop.side, self.crop.side)
        noises = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return places.floor().long().clamp(max=len(self.alphas) - 1), noises

    @torch.inference_mode()
    def errors(self, views: Tensor, noise: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean squared error of the noise under each class, (B, C) float64 on the CPU.

        Args:
            views: (B, side, side, 3) uint8.
            noise: of `noise`.
        """
        clean = views.permute(0, 3, 1, 2).float() / 127.5 - 1
        if self.config["in_channels"] == 1:
            clean = clean.mean(dim=1, keepdim=True)
        return noise_errors(self._output, clean.to(self.device), noise, self.alphas, self.prediction, len(self.classes))

    def _output(self, sample: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        kind = self.unet.dtype  # type: ignore[attr-defined]
        output: Tensor = self.unet(sample.to(kind), time, class_labels=classes).sample  # type: ignore[operator]
        return output.float()


def noise_errors(
    denoiser: Denoiser,
    clean: Tensor,
    noise: tuple[Tensor, Tensor],
    alphas: Tensor,
    prediction: str,
    classes: int,
) -> Tensor:
    """Return the mean squared error of the noise that is predicted under each class, (B, C) float64 on the CPU.

    Args:
        denoiser: (sample, time, classes) -> output.
        clean: (B, c, h, w), on the denoiser's device.
        noise: times (K,) and noises (K, c, h, w).
        alphas: of each time the share of the signal's variance.
        prediction: epsilon, sample or v_prediction.
        classes: C.
    """
    errors = torch.zeros(len(clean), classes, dtype=torch.float64)
    for time, eps in zip(noise[0].to(clean.device), noise[1].to(clean), strict=True):
        share = float(alphas[int(time)])
        alpha, sigma = share**0.5, (1 - share) ** 0.5
        sample = alpha * clean + sigma * eps
        for number in range(classes):
            output = denoiser(sample, time, torch.full((len(clean),), number, device=clean.device))
            wrong = noise_of(prediction, output, sample, alpha, sigma) - eps
            errors[:, number] += wrong.double().square().mean(dim=(1, 2, 3)).cpu() / len(noise[0])
    return errors


def noise_of(prediction: str, output: Tensor, sample: Tensor, alpha: float, sigma: float) -> Tensor:
    """Return the noise that an output stands for; sample = alpha x0 + sigma eps.

    Args:
        prediction: epsilon, sample (the output is x0) or v_prediction (alpha eps - sigma x0).
        output, sample: (B, c, h, w).
        alpha, sigma: of the noise level; their squares sum to one.
    """
    if prediction == "v_prediction":
        return alpha * output + sigma * sample
    return (sample - alpha * output) / sigma if prediction == "sample" else output


def of_errors(errors: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return accuracies by the least error, and the share of pictures whose best two classes tie.

    Args:
        errors: (n, C).
        labels: (n,) int64.
    """
    found = top_accuracies(wrong_above(-errors, labels), labels, errors.shape[1])
    best = errors.sort(dim=1).values
    tied = best[:, 0] == best[:, 1] if errors.shape[1] > 1 else torch.zeros(len(errors), dtype=torch.bool)
    return {**found, "ties": float(tied.double().mean())}
