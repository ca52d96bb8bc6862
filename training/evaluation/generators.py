"""Models that say texts about pictures, by name, and what they say: answers, descriptions, log probabilities of texts.

PATH is a training directory or a checkpoint of a generative method, or hf:ID_OR_PATH of a LLaVA or BLIP.
Shapes: N pictures, T texts, S the side of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from granary.curation.encoders.inference import torch_device, workable
from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.training.data.augment import normalised, to_unit
from granary.training.evaluation.picture_views import central_views, decoded_by, opened_by, opened_views
from granary.training.method import Method
from granary.training.methods.generator_lora import GeneratorLora
from granary.training.models.checkpoint import checkpoint_folder
from granary.training.models.clip_transformers import DTYPES
from granary.training.models.generative import Generative, cut_to, word_loglikelihood
from granary.training.models.hub_generative import HubGenerative, load_hub_generative, says_texts
from granary.training.models.registry import read_name
from granary.training.models.training import load_training

CELLS = 1 << 24  # logits held at once
ROWS = 256  # texts of pictures at once, at most


class Generator(Protocol):
    """A model that says texts about a picture."""

    def cut(self, texts: Sequence[str], question: str | None = None) -> int:
        """Return how many of the texts are longer than the model's context, which cuts them."""

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Return each file as the model takes pictures, (3, S, S) on the CPU, or why it cannot be decoded."""

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open pictures: (3, S, S) for each as the model takes them, None for one that raises DecodeError."""

    def loglikelihood(
        self, pictures: Tensor, texts: Sequence[str], question: str | None = None, mean: bool = False
    ) -> Tensor:
        """Return the log probabilities of every text given every picture, (N, T) float32 on the CPU.

        Args:
            pictures: (N, 3, S, S), prepared.
            texts: descriptions, or answers to the question.
            question: that is asked before.
            mean: divide the sum over the tokens of a text, its end among them, by their number.
        """

    def own_loglikelihood(
        self,
        pictures: Tensor,
        texts: Sequence[Sequence[str]],
        questions: Sequence[str] | None = None,
        mean: bool = False,
    ) -> Tensor:
        """Return the log probabilities of texts of a picture's own, (N, T) float32; equal texts tie exactly.

        Args:
            pictures: (N, 3, S, S), prepared.
            texts: for each picture T texts.
            questions: one for each picture.
            mean: as in `loglikelihood`.
        """

    def answer(self, pictures: Tensor, questions: Sequence[str], tokens: int = 16) -> list[str]:
        """Return the answer to the question of each picture, the likeliest token after another.

        Args:
            pictures: (N, 3, S, S), prepared.
            questions: one for each.
            tokens: of an answer at most.
        """

    def describe(self, pictures: Tensor, tokens: int = 32) -> list[str]:
        """Return a description of each picture, the likeliest token after another.

        Args:
            pictures: (N, 3, S, S), prepared.
            tokens: of a description at most.
        """


class TrainedGenerator:
    """A generator trained here, by a generative method."""

    def __init__(self, model: Generative, device: torch.device, dtype: str = "float32", batch: int = 64) -> None:
        self.model, self.device, self.batch = model.to(device).eval(), device, batch
        self.autocast = partial(torch.autocast, device.type, DTYPES[dtype], enabled=dtype != "float32")

    def cut(self, texts: Sequence[str], question: str | None = None) -> int:
        """Count the texts that are cut."""
        words, prompt = [self.model.words(text) for text in texts], self.model.prompt(question)
        return sum(len(text) > len(cut_to(self.model.longest, prompt, text)[1]) for text in words)

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Cut the middle out of each picture, its short edge at the model's side: (3, S, S) uint8."""
        views = central_views(files, self.model.seen.img_size)
        return [v if isinstance(v, DecodeError) else torch.from_numpy(v).permute(2, 0, 1) for v in views]

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open pictures on threads and cut their middle out: (3, S, S) uint8 each; None for a DecodeError."""
        return opened_views(pictures, self.model.seen.img_size)

    @torch.inference_mode()
    def loglikelihood(
        self, pictures: Tensor, texts: Sequence[str], question: str | None = None, mean: bool = False
    ) -> Tensor:
        """Score all pairs, see `Generator`."""
        prompt, words = self.model.prompt(question), [self.model.words(text) for text in texts]
        rows = []
        for some in pictures.split(self.batch):
            memory = self._memory(some)
            pairs = [(n, prompt, text) for n in range(len(some)) for text in words]
            rows.append(self._scored(memory, pairs, mean).reshape(len(some), len(texts)))
        return torch.cat(rows)

    @torch.inference_mode()
    def own_loglikelihood(
        self,
        pictures: Tensor,
        texts: Sequence[Sequence[str]],
        questions: Sequence[str] | None = None,
        mean: bool = False,
    ) -> Tensor:
        """Score pictures with texts of their own, each distinct one once, see `Generator`."""
        asked = [None] * len(texts) if questions is None else questions
        memory = torch.cat([self._memory(some) for some in pictures.split(self.batch)])
        prompts = [self.model.prompt(question) for question in asked]
        flat = [(n, text) for n, of_one in enumerate(texts) for text in dict.fromkeys(of_one)]
        pairs = [(n, prompts[n], self.model.words(text)) for n, text in flat]
        known = dict(zip(flat, self._scored(memory, pairs, mean), strict=True))
        return torch.stack([torch.stack([known[n, text] for text in of_one]) for n, of_one in enumerate(texts)])

    @torch.inference_mode()
    def answer(self, pictures: Tensor, questions: Sequence[str], tokens: int = 16) -> list[str]:
        """Answer, see `Generator`."""
        return self._said(pictures, [self.model.prompt(question) for question in questions], tokens)

    @torch.inference_mode()
    def describe(self, pictures: Tensor, tokens: int = 32) -> list[str]:
        """Describe, see `Generator`."""
        return self._said(pictures, [self.model.prompt(None)] * len(pictures), tokens)

    def _memory(self, pictures: Tensor) -> Tensor:
        config = self.model.seen
        pixels = to_unit(pictures.to(self.device).permute(0, 2, 3, 1))
        with self.autocast():
            return self.model.memory(normalised(pixels, config.mean, config.std))

    def _scored(self, memory: Tensor, pairs: Sequence[tuple[int, list[int], list[int]]], mean: bool) -> Tensor:
        """Return the log probabilities of (picture, prompt, words), (n,) on the CPU, some at a time.

        Raises:
            UserError: one is not finite.
        """
        longest = max((len(prompt) + len(words) for _, prompt, words in pairs), default=1)
        count = max(1, min(ROWS, CELLS // (min(longest, self.model.longest) * self.model.vocabulary)))
        scores = []
        for start in range(0, len(pairs), count):
            places, prompts, words = zip(*pairs[start : start + count], strict=True)
            with self.autocast():
                sums, counts = word_loglikelihood(self.model, memory[list(places)], prompts, words)
            scores.append((sums / counts if mean else sums).cpu())
        every = torch.cat(scores)
        if not torch.isfinite(every).all():
            raise UserError("model: it gives probabilities that are not finite; check its weights, or the dtype")
        return every

    def _said(self, pictures: Tensor, prompts: Sequence[list[int]], tokens: int) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(pictures), self.batch):
            memory = self._memory(pictures[start : start + self.batch])
            with self.autocast():
                said = self.model.greedy(memory, prompts[start : start + self.batch], tokens)
            texts.extend(self.model.spoken(numbers).strip() for numbers in said)
        return texts


class HubGenerator(TrainedGenerator):
    """A LLaVA or BLIP of `transformers`, whose pictures are prepared as its processor does.

    Args:
        model: with the weights of a dtype that it computes in.
        device: where it computes.
        batch: pictures at once.
    """

    def __init__(self, model: HubGenerative, device: torch.device, batch: int = 8) -> None:
        super().__init__(model, device, batch=batch)
        self.processor, self.dtype = model.images, model.network.dtype

    def _prepared(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.processor([workable(image, aspect=16)], return_tensors="pt")["pixel_values"]
        return pixels[0]

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Prepare each picture: (3, S, S) float32."""
        return decoded_by(files, self._prepared)

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open and prepare pictures on threads: (3, S, S) float32 each; None for a DecodeError."""
        return opened_by(pictures, self._prepared)

    def _memory(self, pictures: Tensor) -> Tensor:
        return self.model.memory(pictures.to(self.device, self.dtype))


class GeneratedPairs:
    """A generator as a scorer of pictures against texts, by the log probability of a text given the picture.

    What it makes of a picture is the prepared picture itself, and of a text its number among those that it was given.

    Args:
        generator: says the texts.
        mean: score by the mean over the tokens of a text, in the place of the sum.

    Attributes:
        truncated: texts cut to the context so far.
    """

    def __init__(self, generator: Generator, mean: bool = False) -> None:
        self.generator, self.mean, self.truncated = generator, mean, 0
        self.numbers: dict[str, int] = {}

    def pictures(self, files: Sequence[bytes]) -> list[Tensor | DecodeError]:
        """Prepare each picture: (3, S, S)."""
        return self.generator.pictures(files)

    def prepared(self, pictures: Sequence[Callable[[], Image.Image]]) -> list[Tensor | None]:
        """Open and prepare pictures."""
        return self.generator.prepared(pictures)

    def images(self, pixels: Tensor) -> Tensor:
        """Return prepared pictures as they are."""
        return pixels

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the numbers of texts, (T, 1) int64."""
        self.truncated += self.generator.cut(texts)
        for text in texts:
            self.numbers.setdefault(text, len(self.numbers))
        return torch.tensor([[self.numbers[text]] for text in texts], dtype=torch.int64).reshape(-1, 1)

    def scores(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Return the log probabilities of all pairs, (N, T); of several sentences that are one text their mean."""
        known, numbers = list(self.numbers), texts.unique().tolist()
        found = self.generator.loglikelihood(pictures, [known[n] for n in numbers], mean=self.mean)
        places = torch.searchsorted(torch.tensor(numbers), texts)  # (T, P)
        return found[:, places].mean(dim=2)

    def ensemble(self, texts: Tensor) -> Tensor:
        """Return the numbers of the sentences of each class as one text: (C, P, 1) -> (C, P)."""
        return texts.flatten(1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the log probabilities of all pairs."""
        return self.scores(images, texts)

    def own_logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return the log probabilities of pictures with texts of their own, (B, N, 1): (B, N); equal texts tie."""
        known = list(self.numbers)
        rows = [[known[n] for n in row] for row in texts.flatten(1).tolist()]
        return self.generator.own_loglikelihood(images, rows, mean=self.mean)


def load_generator(path: str, device: str = "auto", dtype: str = "float32") -> Generator:
    """Return the generator that PATH names.

    Args:
        path: a training directory or a checkpoint of a generative method, or hf:ID_OR_PATH of a LLaVA or BLIP.
        device: auto, cpu, cuda or cuda:N.
        dtype: float32, bfloat16 or float16.

    Raises:
        UserError: there is no such model, or it says no texts.
    """
    check_dtype(dtype)
    target = read_name(path).target
    if read_name(path).way in ("path", "hub") and checkpoint_folder(target) is None and says_texts(target):
        return HubGenerator(load_hub_generative(target, DTYPES[dtype]), torch_device(device))
    generator = generator_of(load_training(path), device, dtype)
    if generator is None:
        raise UserError(f"model: {path} says no texts about a picture; give a training of a generative method")
    return generator


def generator_of(model: Method, device: str = "auto", dtype: str = "float32") -> Generator | None:
    """Return what says texts by a training, None for one that says none; arguments as of `load_generator`."""
    if isinstance(model, GeneratorLora):
        return HubGenerator(model.generator.to(DTYPES[dtype]), torch_device(device))
    return TrainedGenerator(model, torch_device(device), dtype) if isinstance(model, Generative) else None


def check_dtype(dtype: str) -> None:
    """Raise UserError for a name that is none of a type of numbers."""
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not right; the types are {', '.join(sorted(DTYPES))}")
