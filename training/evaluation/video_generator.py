"""Videos shown to a model that was trained on them, one at a time: what it answers, and what its tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError
from granary.training.evaluation.generators import check_dtype
from granary.training.methods.longvu import LongVU, Watched
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.generative import word_loglikelihood
from granary.training.models.training import load_training


class VideoGenerator:
    """A training of longvu that answers questions about videos.

    Args:
        model: the training.
        device: where it computes.
        dtype: it computes in.

    Attributes:
        tokens: of the videos so far, as the language model read them.
        lost: frames that were dropped for want of room, without any token left.
    """

    def __init__(self, model: LongVU, device: torch.device, dtype: str = "float32") -> None:
        self.model, self.device = model.to(device).eval(), device
        self.autocast = partial(torch.autocast, device.type, DTYPES[dtype], enabled=dtype != "float32")
        self.tokens: list[int] = []
        self.lost = 0

    @torch.inference_mode()
    def answer(self, pictures: Tensor, questions: Sequence[str], tokens: int = 16) -> list[str]:
        """Return the answer to the question of each video, the likeliest token after another.

        Args:
            pictures: (Q, T, S, S, 3) uint8.
            questions: Q.
            tokens: of an answer at most.
        """
        answers = []
        for video, question in zip(pictures, questions, strict=True):
            memory = self._watched(video, question).values
            with self.autocast():
                (said,) = self.model.greedy(memory, [self.model.prompt(question)], tokens)
            answers.append(self.model.spoken(said).strip())
        return answers

    @torch.inference_mode()
    def loglikelihood(self, pictures: Tensor, texts: Sequence[str], question: str | None = None) -> Tensor:
        """Return the log probabilities of every text given every video, (N, T) float32 on the CPU."""
        return self.own_loglikelihood(pictures, [texts] * len(pictures), [question] * len(pictures))

    @torch.inference_mode()
    def own_loglikelihood(
        self, pictures: Tensor, texts: Sequence[Sequence[str]], questions: Sequence[str | None] | None = None
    ) -> Tensor:
        """Return the log probabilities of texts of a video's own, (N, T) float32 on the CPU."""
        rows = []
        for video, own, question in zip(pictures, texts, questions or [None] * len(texts), strict=True):
            memory = self._watched(video, question).values.expand(len(own), -1, -1)
            prompts, words = [self.model.prompt(question)] * len(own), [self.model.words(text) for text in own]
            with self.autocast():
                rows.append(word_loglikelihood(self.model, memory, prompts, words)[0].float().cpu())
        return torch.stack(rows)

    def _watched(self, video: Tensor, question: str | None) -> Watched:
        """Show a video (T, S, S, 3) to the model."""
        with self.autocast():
            watched = self.model.watch([self.model.encoded(video.to(self.device))], [question])
        self.tokens += watched.counts.tolist()
        self.lost += sum(len(seen.lost) for seen in watched.videos)
        return watched


def load_video_generator(path: str, device: str = "auto", dtype: str = "float32") -> VideoGenerator:
    """Return the model that PATH names, a training directory or a checkpoint. Raises UserError for one of no videos."""
    check_dtype(dtype)
    model = load_training(path)
    if not isinstance(model, LongVU):
        raise UserError(f"model: {path} has not learnt to see videos; give a training of longvu")
    return VideoGenerator(model, torch_device(device), dtype)
