"""Draw samples from a diffusion model under classifier feedback, in batches.

Each sample has random generators of its own, on the CPU, and every norm of the feedback is its own; so batch mates do
not matter, but for the last bits of float sums that libraries add up in another order for another batch size.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from granary.curation.encoders.inference import fingerprint, reason, torch_device
from granary.curation.errors import UserError
from granary.synth.feedback.classifiers import ImageClassifier, load_classifier
from granary.synth.feedback.diffusion.estimates import FLOW
from granary.synth.feedback.diffusion.families import class_names, decoder, family_of
from granary.synth.feedback.diffusion.interfaces import PipelineOutput
from granary.synth.feedback.diffusion.loading import load_pipeline
from granary.synth.feedback.gaussians import ClassGaussians
from granary.synth.feedback.guidance import criteria
from granary.synth.feedback.guidance.hooks import Feedback, pictures
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.recipe import Sampling
from granary.synth.feedback.requests import Drawn, Request

EVERY_STEP = {"every": 1, "start": 0.0, "stop": 1.0}
# What networks raise that do not fit together.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Sampler:
    """A diffusion pipeline and a classifier that steers it.

    Args:
        model: a folder of diffusers or an id of the Hub.
        classifier: see `load_classifier`; it stays in float32.
        guidance: the classifier's feedback.
        sampling: how the model is run.
        gaussians: for the hardness criterion.

    Attributes:
        pipe: the pipeline.
        classes: names of the classes the model takes, None when it takes none.
        classifier_classes: names in the order of the classifier's logits.
        needs: what each request must have: "label", "prompt", "condition".
        models: sha256 (hex) of the files of model and classifier.
        halvings: how often memory ran out and the batch was halved.

    Raises:
        UserError: a model that cannot be used, or options that do not go with it.
    """

    def __init__(
        self,
        model: str,
        classifier: str,
        guidance: GuidanceOptions,
        sampling: Sampling | None = None,
        gaussians: ClassGaussians | None = None,
    ) -> None:
        if guidance.criterion == "hardness" and gaussians is None:
            raise UserError("guidance.criterion: hardness needs class Gaussians of real images")
        self.guidance, self.sampling = guidance, sampling or Sampling()
        self.device = torch_device(self.sampling.device)
        self.classifier: ImageClassifier = load_classifier(classifier, self.device)
        self.classifier_classes = list(self.classifier.classes)
        self.pipe, weights = load_pipeline(model, self.sampling.scheduler, self.device, self.sampling.dtype)
        self._check_steps()
        self.family = family_of(self.pipe)
        self.classes = class_names(self.pipe)
        self.needs = self.family.needs or (("label",) if self.classes else ())
        self.gaussians = gaussians.to(self.device) if gaussians else None
        if guidance.checkpoint:
            for name in {self.family.denoiser, "vae"} & set(self.pipe.components):
                getattr(self.pipe, name).enable_gradient_checkpointing()
        self.models = fingerprint([], "models-1", weights, self.classifier.fingerprint)
        self.halvings, self._most = 0, math.inf

    def _check_steps(self) -> None:
        steps = self.sampling.steps
        if type(self.pipe.scheduler).__name__ == FLOW:
            return  # any number goes; some of them choose their steps by the size of the picture
        try:
            self.pipe.scheduler.set_timesteps(steps)
        except ValueError as error:
            raise UserError(f"steps: {steps} do not go with the model's scheduler ({reason(error)})") from error

    def check(self) -> None:
        """Draw one sample in one step, with feedback; raises UserError where the models do not work together."""
        picture = Image.new("RGB", (64, 64), "grey")
        request = Request("trial", 0, 0 if "label" in self.needs else None, 0, "a picture", picture)
        try:
            self._batch([request], steps=1, guidance=self.guidance.model_copy(update=EVERY_STEP))
        except UNFIT as error:
            if out_of_memory(error):
                self._halve(1)
            raise UserError(
                f"model: a {type(self.pipe).__name__} cannot draw with these networks and this classifier "
                f"({type(error).__name__}: {reason(error)}); try another scheduler, dtype or model"
            ) from error

    def draw(self, requests: Sequence[Request], batch: int = 16) -> list[Drawn]:
        """Draw the requests in batches of at most `batch`, in their order.

        Where memory runs out the batch is halved, for the rest of the sampler's life. Raises UserError for a request
        that the model or the criterion cannot serve, and when memory is too small for a single sample.
        """
        self._check(requests)
        drawn: list[Drawn] = []
        while len(drawn) < len(requests):
            size = int(min(batch, self._most))
            part = requests[len(drawn) : len(drawn) + size]
            batch_drawn = attempt(lambda part=part: self._batch(part))  # type: ignore[misc]
            if batch_drawn is None:
                self._halve(len(part))
            else:
                drawn += batch_drawn
        return drawn

    def _halve(self, size: int) -> None:
        """Remember a smaller batch."""
        if size == 1:
            raise UserError("memory ran out on a single sample; try guidance.checkpoint, float16 or a smaller model")
        self.halvings, self._most = self.halvings + 1, size // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, requests: Sequence[Request]) -> None:
        """Raise UserError for a request that cannot be served."""
        missing = self.gaussians.missing() if self.gaussians is not None else []
        for request in requests:
            if "label" in self.needs and (request.label is None or not 0 <= request.label < len(self.classes or [])):
                raise UserError(f"row {request.row_id}: label {request.label} is none of the model's classes")
            if not 0 <= request.target < len(self.classifier_classes):
                raise UserError(f"row {request.row_id}: target {request.target} is none of the classifier's classes")
            if "condition" in self.needs and request.condition is None:
                raise UserError(f"row {request.row_id}: the model needs a conditioning picture")
            if request.target in missing:
                name = self.classifier_classes[request.target]
                raise UserError(f"guidance.criterion: hardness has no real images of class '{name}' to compare with")

    def _batch(
        self, requests: Sequence[Request], steps: int | None = None, guidance: GuidanceOptions | None = None
    ) -> list[Drawn]:
        """Draw one batch; by default with the sampler's steps and guidance."""
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        targets = torch.tensor([request.target for request in requests], device=self.device)
        decode = decoder(self.pipe)

        def criterion(clean: Tensor) -> Tensor:
            return self._value(pictures(decode(clean), self.guidance.rescale), targets)[0]

        denoiser, scheduler = getattr(self.pipe, self.family.denoiser), self.pipe.scheduler
        n, half = len(requests), self.family.conditional
        feedback = Feedback(guidance or self.guidance, denoiser, scheduler, criterion, n, half, generators)
        arguments = self.family.arguments(self.pipe, requests, self.sampling.image_dropout)
        if self.family.guided and self.sampling.guidance_scale is not None:
            arguments["guidance_scale"] = self.sampling.guidance_scale
        with feedback.attached():
            result = self.pipe(
                **arguments, generator=generators, num_inference_steps=steps or self.sampling.steps, output_type="np"
            )
        return self._judged(requests, targets, result, feedback)

    def _value(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the criterion (n,), and the logits where they were needed."""
        if self.guidance.criterion == "hardness":
            assert self.gaussians is not None
            return self.gaussians.hardness(self.classifier.features(images), targets), None
        logits = self.classifier.logits(images)
        if self.guidance.criterion == "entropy":
            return criteria.entropy(logits), logits
        return criteria.loss(logits, targets), logits

    @torch.no_grad()
    def _judged(
        self, requests: Sequence[Request], targets: Tensor, result: PipelineOutput, feedback: Feedback
    ) -> list[Drawn]:
        """Score the finished pictures as they will be stored, in 8 bits."""
        finite = [bool(np.isfinite(image).all()) for image in result.images]
        withheld = getattr(result, "nsfw_content_detected", None) or [False] * len(requests)
        images = stored(result.images)
        shown = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
        values, logits = self._value(shown, targets)
        chances = (self.classifier.logits(shown) if logits is None else logits).softmax(dim=1)
        probability, predicted = (part.tolist() for part in chances.max(dim=1))
        traces = torch.stack(feedback.trace, dim=1).tolist() if feedback.trace else [[]] * len(requests)
        return [
            Drawn(
                row_id=request.row_id,
                image=images[i],
                value=float(values[i]) if finite[i] and not withheld[i] else math.nan,
                trace=tuple(traces[i]),
                predicted=predicted[i],
                probability=probability[i],
                skipped=int(feedback.skipped[i]),
                unguided=not feedback.taken[i],
            )
            for i, request in enumerate(requests)
        ]


def stored(images: np.ndarray) -> np.ndarray:
    """Return pictures (n, h, w, c) in 0..1 as (n, h, w, 3) uint8; black where a picture is not finite."""
    finite = np.isfinite(images).all(axis=(1, 2, 3), keepdims=True)
    pixels = (np.where(finite, images, 0) * 255).round().astype(np.uint8)
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels


def attempt(draw: Callable[[], list[Drawn]]) -> list[Drawn] | None:
    """Return what is drawn, or None when memory ran out; the error and the tensors it holds are let go."""
    try:
        return draw()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on any device."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)
