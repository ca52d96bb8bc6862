"""Summaries and negatives by a causal language model of `transformers`, with DCI's rules of what is accepted.

Lengths are those of a budget of 77 tokens, in proportion for another: a summary is accepted below 140 and asked to be
made shorter until it has 75 at most, and dropped above 77; a negative of a summary of n is accepted between n - 15 and
n + 50 and made shorter to n + 5. Every text is drawn from its own seed, so it depends on the seed of the run, its
entry and, through rounding alone, on the other texts of its batch.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from granary.curation.dense import prompts
from granary.curation.dense.engines import Entry, Text, seed_of
from granary.curation.dense.negatives import KINDS
from granary.curation.dense.packing import Counter, windows
from granary.curation.dense.recipe import Negatives, Summaries, Writer
from granary.curation.dense.texts import cleaned
from granary.curation.encoders.inference import torch_device
from granary.curation.errors import UserError

CLIP = 77  # the budget that DCI's lengths belong to
PER_CALL = 5  # alternate summaries asked for at a time
ALTERNATES_OF_IMAGE, ALTERNATES_OF_MASK = 8, 4  # more than this many are wanted
NEW_TOKENS = 4  # of the model, at most, for each of the budget
BUSY = threading.Lock()  # one text engine at a time in a process: the model fills the device


def model_files(folder: str) -> list[str]:
    """Return the files of a model's folder that decide what it writes, sorted; raises UserError when it is none."""
    endings = (".json", ".safetensors", ".txt", ".model", ".jinja")
    try:
        found = sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(endings))
    except OSError as error:
        raise UserError(f"writer.model: {folder!r} is no folder ({error.strerror}); give that of a model") from error
    if not any(path.endswith("config.json") for path in found):
        raise UserError(f"writer.model: {folder!r} holds no config.json; give the folder of a causal language model")
    return found


@functools.lru_cache(maxsize=1)
def load(folder: str, device: str, dtype: str) -> tuple[Any, Any]:
    """Return tokenizer and model, safetensors only, no code of the folder run; raises UserError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="left", local_files_only=True, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"writer.model: {folder!r} cannot be loaded ({reason}); give a causal language model"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    torch.nn.Module.to(model, torch_device(device))
    return tokenizer, model.eval()


class Drawn(LogitsProcessor):
    """Makes the greedy choice a draw from softmax(logits / temperature), each row from a generator of its own.

    argmax(logits / T + g) with g of the Gumbel distribution is such a draw (Gumbel 1954).

    Args:
        seeds: of the rows.
        temperature: T.
    """

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Add noise to (rows, vocabulary) logits."""
        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scores.float() / self.temperature + noise.to(scores.device)  # type: ignore[return-value]


@dataclass(frozen=True)
class Ask:
    """One thing asked of the model. text: what the template's {text} is; seed: of its answer."""

    template: str
    text: str
    seed: int


@dataclass(frozen=True)
class ModelWriter:
    """Writes summaries and negatives.

    Args:
        generate: asks with numbers for their templates -> answers; replaced in tests.
        counter: of the budget.
        name: of the model, for the record.
        seed: of the run.
        attempts: times a text is asked for, and asked to be made shorter.
        alternates: whether further summaries are wanted.
        per_image, per_mask: negatives of each kind.
        max_input: length of a description that is shown, in the counter's unit.
    """

    generate: Callable[[Sequence[Ask], Mapping[str, int]], list[str]]
    counter: Counter
    name: str
    seed: int = 0
    attempts: int = 4
    alternates: bool = True
    per_image: int = 3
    per_mask: int = 1
    max_input: int = 2000

    @classmethod
    def of(cls, writer: Writer, summaries: Summaries, negatives: Negatives, counter: Counter, seed: int) -> ModelWriter:
        """Return the writer of a recipe's options; the model is loaded once in a process."""
        return cls(
            Generator(writer, counter.budget * NEW_TOKENS),
            counter,
            os.path.basename(writer.model.rstrip("/")),
            seed,
            writer.attempts,
            summaries.alternates,
            negatives.per_image,
            negatives.per_mask,
            writer.max_input,
        )

    def scaled(self, tokens: int) -> int:
        """Return a length of DCI's for the budget at hand."""
        return round(tokens * self.counter.budget / CLIP)

    def summaries(self, entries: Sequence[Entry]) -> list[list[Text]]:
        """Return the accepted summary of each entry, then its alternates; none where no answer was accepted."""
        shown = [self._shown(entry.description) for entry in entries]
        asks = [
            [Ask(prompts.SUMMARY, text, seed_of(self.seed, entry.id, "summary", str(n))) for n in range(self.attempts)]
            for entry, text in zip(entries, shown, strict=True)
        ]
        most, longest = self.scaled(140), self.counter.budget - self.scaled(2)
        firsts = self._accepted(asks, [lambda text, size: size < most] * len(asks), [longest] * len(asks))
        found = [
            [self._text(text, "summary", ask)] if text and self._size(text) <= self.counter.budget else []
            for text, ask in firsts
        ]
        if self.alternates:
            chosen = [place for place, texts in enumerate(found) if texts]
            for place, further in zip(
                chosen, self._further([entries[p] for p in chosen], [shown[p] for p in chosen]), strict=True
            ):
                found[place] += [text for text in further if text.text != found[place][0].text]
        return found

    def negatives(self, entries: Sequence[Entry], positives: Sequence[str]) -> list[list[Text]]:
        """Return for each entry the accepted negatives of every kind."""
        wanted = [
            (place, kind, number)
            for place, entry in enumerate(entries)
            for kind in KINDS
            for number in range(self.per_image if entry.base else self.per_mask)
        ]
        asks, accept, longest = [], [], []
        for place, kind, number in wanted:
            names = (entries[place].id, kind, str(number))
            positive, size = positives[place], self._size(positives[place])
            asks.append(
                [
                    Ask(prompts.NEGATIVES[kind], positive, seed_of(self.seed, *names, str(n)))
                    for n in range(self.attempts)
                ]
            )
            accept.append(self._negative_of(positive, size))
            longest.append(size + self.scaled(5))
        found: list[list[Text]] = [[] for _ in entries]
        for (place, kind, _), (text, ask), most in zip(
            wanted, self._accepted(asks, accept, longest), longest, strict=True
        ):
            known = {positives[place].lower(), *(other.text.lower() for other in found[place])}
            if text and text.lower() not in known and self._size(text) <= most:
                found[place].append(self._text(text, kind, ask, kind))
        return found

    def _negative_of(self, positive: str, size: int) -> Callable[[str, int], bool]:
        low, high = size - self.scaled(15), size + self.scaled(50)
        return lambda text, found: low < found < high and text.lower() != positive.lower()

    def _accepted(
        self,
        asks: Sequence[Sequence[Ask]],
        accept: Sequence[Callable[[str, int], bool]],
        longest: Sequence[int],
    ) -> list[tuple[str, Ask]]:
        """Return for each list of asks the first accepted answer, made as short as `longest`, and its ask.

        Where nothing was accepted the text is "". A text that cannot be made shorter stays as it is.
        """
        found = [("", each[0]) for each in asks]
        for attempt in range(self.attempts):
            pending = [place for place, (text, _) in enumerate(found) if not text]
            answers = self.generate([asks[place][attempt] for place in pending], self.numbers)
            for place, reply in zip(pending, map(prompts.answer, answers), strict=True):
                if reply and accept[place](reply, self._size(reply)):
                    found[place] = (cleaned(reply), asks[place][attempt])
        for attempt in range(self.attempts):
            pending = [p for p, (text, _) in enumerate(found) if text and self._size(text) > longest[p]]
            again = [
                Ask(prompts.SHORTER, found[p][0], seed_of(found[p][1].seed, "shorter", str(attempt))) for p in pending
            ]
            answers = self.generate(again, self.numbers)
            for place, reply in zip(pending, map(prompts.answer, answers), strict=True):
                if reply and self._size(reply) < self._size(found[place][0]):
                    found[place] = (cleaned(reply), found[place][1])
        return found

    def _further(self, entries: Sequence[Entry], shown: Sequence[str]) -> list[list[Text]]:
        """Return alternate summaries: five a call, kept below the budget, until there are more than enough."""
        found: list[list[Text]] = [[] for _ in entries]
        enough = [
            ALTERNATES_OF_IMAGE
            if entry.base
            else max(ALTERNATES_OF_MASK, math.log(max(1, self._size(entry.description))))
            for entry in entries
        ]
        for call in range(2 * self.attempts):
            pending = [place for place, texts in enumerate(found) if len(texts) <= enough[place]]
            asks = [
                Ask(prompts.ALTERNATES, shown[p], seed_of(self.seed, entries[p].id, "alternate", str(call)))
                for p in pending
            ]
            answers = self.generate(asks, self.numbers)
            for place, ask, reply in zip(pending, asks, answers, strict=True):
                known = {text.text for text in found[place]}
                for text in dict.fromkeys(map(cleaned, prompts.listed(reply)[:PER_CALL])):
                    if text not in known and self._size(text) < self.counter.budget:
                        found[place].append(self._text(text, "alternate", ask))
        return found

    @property
    def numbers(self) -> dict[str, int]:
        """The numbers of the templates: DCI asks for about 65 words for 77 tokens."""
        return {"words": max(1, round(65 / CLIP * self.counter.budget)), "count": PER_CALL}

    def _shown(self, description: str) -> str:
        """Return the beginning of a description, cut between windows."""
        total = 0
        shown: list[str] = []
        for window in windows(description, self.counter):
            total += window.tokens
            if shown and total > self.max_input:
                break
            shown.append(window.text)
        return " ".join(shown)

    def _size(self, text: str) -> int:
        return self.counter([text])[0]

    def _text(self, text: str, prompt: str, ask: Ask, kind: str = "") -> Text:
        return Text(text, f"model:{self.name}", f"{prompt}/{prompts.VERSION}", ask.seed, kind)


class Generator:
    """Asks a model, `batch` prompts at a time, the longest together.

    Args:
        writer: the recipe's options.
        most: new tokens of an answer.
    """

    def __init__(self, writer: Writer, most: int) -> None:
        self.writer, self.most = writer, most

    def __call__(self, asks: Sequence[Ask], numbers: Mapping[str, int]) -> list[str]:
        """Return the answer to each."""
        if not asks:
            return []
        with BUSY:
            tokenizer, model = load(self.writer.model, self.writer.device, self.writer.dtype)
            written = [self._prompt(tokenizer, model, ask, numbers) for ask in asks]
            order = sorted(range(len(asks)), key=lambda place: (-len(written[place]), place))
            answers = [""] * len(asks)
            for start in range(0, len(order), self.writer.batch):
                batch = order[start : start + self.writer.batch]
                found = self._answers(tokenizer, model, [written[p] for p in batch], [asks[p].seed for p in batch])
                for place, text in zip(batch, found, strict=True):
                    answers[place] = text
        return answers

    def _prompt(self, tokenizer: Any, model: Any, ask: Ask, numbers: Mapping[str, int]) -> str:
        """Return the prompt, in the model's chat form where it has one; a text too long for the model is halved."""
        room, text = getattr(model.config, "max_position_embeddings", None), ask.text
        while True:
            prompt = ask.template.format(text=text, **numbers)
            if tokenizer.chat_template:
                message = [{"role": "user", "content": prompt}]
                prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            if room is None or len(text) < 2 or len(self._ids(tokenizer, [prompt])["input_ids"][0]) + self.most <= room:
                return str(prompt)
            text = text[: len(text) // 2].rpartition(" ")[0] or text[: len(text) // 2]

    def _ids(self, tokenizer: Any, written: Sequence[str], **options: Any) -> Any:
        return tokenizer(list(written), add_special_tokens=not tokenizer.chat_template, **options)

    @torch.inference_mode()
    def _answers(self, tokenizer: Any, model: Any, written: Sequence[str], seeds: Sequence[int]) -> list[str]:
        inputs = self._ids(tokenizer, written, return_tensors="pt", padding=True)
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.most,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=model.generation_config.eos_token_id,
        )
        drawn = LogitsProcessorList([Drawn(seeds, self.writer.temperature)])
        found = model.generate(**inputs, generation_config=settings, logits_processor=drawn)
        return list(tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
