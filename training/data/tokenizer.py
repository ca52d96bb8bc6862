"""The tokenizer of image-text models: a byte-level BPE, given or trained on the captions of the datasets.

Shapes: T texts, L tokens of a text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from granary.curation.errors import UserError
from granary.curation.store import storage
from granary.curation.store.sampling import priority
from granary.training.data import shards

START, END, PAD = SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<|pad|>")
COLUMN = "captions"


class TextTokenizer:
    """A tokenizer with the frame of the text encoder, `start text end` where it is causal, else `text end`.

    Args:
        source: the JSON of a `tokenizers` tokenizer; start, end and padding are added where it has none of their name.
        context: tokens of a text at most; what is beyond is cut off.
        causal: as in `TextConfig`.

    Attributes:
        json: of the tokenizer with its frame, for `transformers` too.
        truncated: texts cut so far.
    """

    def __init__(self, source: str, context: int, causal: bool) -> None:
        self.inner = Tokenizer.from_str(source)
        self.context, self.causal, self.truncated = context, causal, 0
        self.inner.add_special_tokens([name for name in SPECIAL if self.inner.token_to_id(name) is None])
        self.start, self.end, self.pad = (int(self.inner.token_to_id(name) or 0) for name in SPECIAL)
        self.inner.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}" if causal else f"$A {END}",
            special_tokens=[(START, self.start), (END, self.end)],
        )
        self.inner.no_padding()
        self.inner.enable_truncation(context)
        self.json = str(self.inner.to_str())

    @property
    def vocabulary(self) -> int:
        """Rows that the table of the text encoder needs."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (T, L) int64.

        L is the longest of them where the encoder is causal, since it does not see the padding; else the context.
        """
        encoded = [self.inner.encode(text) for text in texts]  # one by one: no threads, which forks do not survive
        self.truncated += sum(bool(encoding.overflowing) for encoding in encoded)
        length = max((len(encoding.ids) for encoding in encoded), default=1) if self.causal else self.context
        rows = [encoding.ids + [self.pad] * (length - len(encoding.ids)) for encoding in encoded]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), length)

    def plain(self, text: str) -> list[int]:
        """Return all tokens of a text, without its frame."""
        whole = self.inner.encode(text, add_special_tokens=False)
        numbers = [number for part in (whole, *whole.overflowing) for number in part.ids]
        return [number for number in numbers if number not in (self.start, self.end)]

    def text(self, numbers: Sequence[int]) -> str:
        """Return the text of tokens; those of the frame and the padding are left out."""
        return str(self.inner.decode(list(numbers)))


def read_tokenizer(path: str) -> str:
    """Return the JSON of a tokenizer: a tokenizer.json or a folder with one, any URL. Raises UserError."""
    url = path if path.endswith(".json") else storage.join(path, "tokenizer.json")
    try:
        return str(Tokenizer.from_str(storage.read_bytes(url).decode()).to_str())
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"options.tokenizer: {path!r} holds no tokenizer ({reason}); give a tokenizer.json or a folder with one"
        ) from error


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> str:
    """Return the JSON of a byte-level BPE tokenizer (Sennrich et al. 2016, arXiv 1508.07909) learnt from captions.

    Upper and lower case are one, as in CLIP. The same captions give the same bytes, in any order.

    Args:
        captions: texts.
        vocabulary: tokens at most, with 256 bytes and three special ones; few captions give fewer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of data workers
    tokenizer = Tokenizer(models.BPE())
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a first word is like any other
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(iter(captions), trainer)
    return str(tokenizer.to_str())


def corpus(datasets: Sequence[shards.Dataset]) -> Iterator[str]:
    """Yield the captions of datasets that are not blank, row groups in an order drawn by hash.

    Raises:
        UserError: there is no caption at all.
    """
    groups = [group for dataset in datasets for group in dataset.groups]
    any_text = False
    for place in priority(0, range(len(groups)), "corpus").argsort():
        column = shards.read_group(groups[place], [COLUMN])[COLUMN]
        for caption in filled(column.flatten().to_pylist()):
            any_text = True
            yield caption
    if not any_text:
        paths = ", ".join(dataset.path for dataset in datasets)
        raise UserError(f"data: the column {COLUMN} of {paths} has no text in any row; image-text training needs some")


def filled(captions: Iterable[str | None] | None) -> list[str]:
    """Return the captions that are not blank."""
    return [caption for caption in captions or () if caption and caption.strip()]
