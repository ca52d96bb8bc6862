"""Cut long texts into windows of a token budget, at sentence boundaries where that is possible.

Windows are slices of the text, one after the other: nothing but white space is left out between them. A sentence is
cut only when it exceeds the budget alone, then between clauses, then between words; never inside a word.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from granary.curation.dense.texts import words
from granary.curation.errors import UserError
from granary.curation.store import storage

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = 55  # budget without a tokenizer: CLIP's 77 tokens at 1.4 tokens for a word
BATCH = 32  # sentences counted at a time
TOKENS = 77  # of CLIP's text encoder, the begin and end tokens included
ABBREVIATIONS = "Mr|Mrs|Ms|Dr|Prof|St|Mt|vs|etc|e\\.g|i\\.e|approx|No|Nos|Fig|Jr|Sr|Inc|Ltd|Co|a\\.m|p\\.m|ca|cf|al"
SENTENCE_END = re.compile(
    r"[.!?…؟۔।][\"'”’»)\]]*\s+(?![a-z])"  # not before a small letter: "approx. three"
    r"|\n+"
    r"|[。！？][”’」』）]*\s*"
)
CLAUSE_END = re.compile(r"[,;:،؛]\s+|\s+(?=[–—(])|[、，；：]\s*")
SPACE = re.compile(r"\s+")
ABBREVIATED = re.compile(rf"(?:^|[\s(])(?:{ABBREVIATIONS}|[A-Z])\.$")
Span = tuple[int, int]


class Counter:
    """Counts the length of texts.

    Args:
        tokenizer: path of a `tokenizer.json` or of the folder of a `transformers` tokenizer; "" counts words.
        budget: the most a window may have; by default 77 tokens or 55 words.

    Attributes:
        unit: what is counted: "tokens" or "words".
    """

    def __init__(self, tokenizer: str = "", budget: int | None = None) -> None:
        self.unit = "tokens" if tokenizer else "words"
        self.budget = budget or (TOKENS if tokenizer else WORDS)
        self._tokenizer = load_tokenizer(tokenizer) if tokenizer else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the tokenizer, "" where there is none."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest() if self._tokenizer else ""

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Return the length of each text, special tokens included."""
        if self._tokenizer is None:
            return [words(text) for text in texts]
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    @functools.cached_property
    def overhead(self) -> int:
        """The number of special tokens around a text."""
        return self([""])[0]


@functools.lru_cache(maxsize=4)
def load_tokenizer(path: str) -> Tokenizer:
    """Return a tokenizer that neither truncates nor pads; raises UserError when there is none."""
    from tokenizers import Tokenizer

    file = path if path.endswith(".json") else storage.join(path, "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(storage.read_bytes(file).decode()) if storage.exists(file) else _converted(path)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(
            f"budget.tokenizer: {path!r} holds no tokenizer ({error}); give a tokenizer.json, or the folder of a "
            "transformers tokenizer"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _converted(path: str) -> Tokenizer:
    """Load a folder that has only the older files of a tokenizer, such as vocab.json and merges.txt."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False).backend_tokenizer


@dataclass(frozen=True)
class Window:
    """A slice of a text.

    Args:
        tokens: its length in the counter's unit.
    """

    text: str
    tokens: int


def windows(text: str, counter: Counter) -> Iterator[Window]:
    """Cut a text into windows of at most `counter.budget`; a single word longer than that is a window of its own.

    Neighbouring sentences share a window as long as they fit, in order (next fit).

        >>> [window.text for window in windows("One cat. Two dogs run. A bird.", Counter(budget=5))]
        ['One cat. Two dogs run.', 'A bird.']

    Args:
        text: any.
        counter: what lengths are counted in, and the budget.

    Yields:
        The windows in order, each when it is asked for; none for a text of white space alone.
    """
    if not text.strip():
        return
    whole = counter([text])[0]
    if whole <= counter.budget:
        yield Window(text.strip(), whole)
        return
    held: list[tuple[Span, int]] = []  # pieces of the next window, with the lengths they have apart
    total = counter.overhead
    for span, size in _pieces(text, counter):
        while held and total + size - counter.overhead > counter.budget:
            window, held = _closed(text, held, counter)
            total = counter.overhead + sum(length - counter.overhead for _, length in held)
            yield window
        held.append((span, size))
        total += size - counter.overhead
    while held:
        window, held = _closed(text, held, counter)
        yield window


def _closed(text: str, held: list[tuple[Span, int]], counter: Counter) -> tuple[Window, list[tuple[Span, int]]]:
    """Return the window of the pieces held, and those left over: joined, pieces may have more tokens than apart."""
    for last in range(len(held) - 1, -1, -1):
        cut = text[held[0][0][0] : held[last][0][1]]
        tokens = counter([cut])[0]
        if tokens <= counter.budget or last == 0:
            return Window(cut, tokens), held[last + 1 :]
    raise AssertionError("unreachable")


def _pieces(text: str, counter: Counter) -> Iterator[tuple[Span, int]]:
    """Yield the sentences with their lengths, those that exceed the budget as clauses, and what still does as words."""
    unread = sentences(text)
    while batch := list(itertools.islice(unread, BATCH)):
        yield from _finer(text, batch, counter, (CLAUSE_END, SPACE))


def _finer(
    text: str, spans: list[Span], counter: Counter, separators: tuple[re.Pattern[str], ...]
) -> Iterator[tuple[Span, int]]:
    for span, size in zip(spans, counter([text[start:stop] for start, stop in spans]), strict=True):
        if size > counter.budget and separators:
            yield from _finer(text, split(text, separators[0], span), counter, separators[1:])
        else:
            yield span, size


def sentences(text: str) -> Iterator[Span]:
    """Yield the bounds of the sentences of a text; an abbreviation does not end one."""
    start: int | None = None
    for begin, end in _split(text, SENTENCE_END, (0, len(text))):
        start = begin if start is None else start
        if not (ABBREVIATED.search(text[max(start, end - 12) : end]) and "\n" not in text[end : end + 1]):
            yield start, end
            start = None
    if start is not None:
        yield start, len(text.rstrip())


def split(text: str, separator: re.Pattern[str], span: Span) -> list[Span]:
    """Return the parts of text[start:stop] between matches; marks in a match stay with the part before it."""
    return list(_split(text, separator, span))


def _split(text: str, separator: re.Pattern[str], span: Span) -> Iterator[Span]:
    begin, stop = span
    ends = (match.end() for match in separator.finditer(text, begin, stop))
    for end in itertools.chain(ends, [stop]):
        part = text[begin:end]
        if part.strip():
            yield begin + len(part) - len(part.lstrip()), begin + len(part.rstrip())
        begin = end
