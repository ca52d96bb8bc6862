"""The sDCI benchmark: which summary belongs to which crop, and is a summary better than its negative.

Urbanek et al. 2024 (arXiv 2312.08578). An entry is a whole image or a mask's crop. Entries come in file order in
batches of 8, so that the rivals of a crop are mostly crops of the same image; the last batch may be smaller.

Shapes: B entries of a batch, N texts of an entry, D dimensions of what a model makes of a text. Logits L are image by
text: B x (B * N).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from granary.training.data.pairs import Entry, read_entries
from granary.training.evaluation.pairs import PairScorer, load_pair_scorer
from granary.training.evaluation.protocol import Measured, Protocol, ScorerOptions
from granary.training.evaluation.scores import Scores

BATCH = 8
NOTES = (
    "SCM depends on the order and the size of batches: entries in file order, 8 at a time.",
    "All-Hard-Negs takes the negatives that one model scored highest: the column is adversarial to that model and not "
    "comparable between models without saying so.",
)


@dataclass(frozen=True)
class Column:
    """A pair of columns of the paper's table.

    Args:
        matching: name of the SCM column, "" where the paper reports none.
        negatives: name of the Neg column.
        texts: N; entries with fewer do not take part.
        base: whole images only.
        kind: of the negative, "hardest" for the highest score.
    """

    matching: str
    negatives: str
    texts: int = 1
    base: bool = False
    kind: str = "swaps"

    def negative(self, entry: Entry) -> str | None:
        """Return the negative of an entry, if it has one."""
        return entry.hardest_negative() if self.kind == "hardest" else entry.first_negative(self.kind)

    def takes(self, entry: Entry) -> bool:
        """Say whether an entry takes part."""
        return (
            len(entry.captions) >= self.texts
            and (entry.base or not self.base)
            and (bool(self.matching) or self.negative(entry) is not None)
        )


COLUMNS = (
    Column("All-SCM", "All-Neg"),
    Column("All-Pick5-SCM", "All-Pick5-Neg", texts=5),
    Column("", "Base-Neg", base=True),
    Column("", "All-Hard-Negs", kind="hardest"),
)


def pooled(logits: Tensor, texts: int) -> Tensor:
    """Pool the texts of each entry, B x (B * N) -> B x B: by their maximum, but by their minimum on the diagonal."""
    groups = logits.unflatten(1, (-1, texts))  # (B, B, N)
    diagonal = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return torch.where(diagonal, groups.amin(dim=2), groups.amax(dim=2))


def matched(logits: Tensor, texts: int) -> Tensor:
    """Say for each image whether its own texts come first, B x (B * N) -> (B,) bool."""
    return pooled(logits, texts).argmax(dim=1) == torch.arange(len(logits), device=logits.device)


def beaten(positives: Tensor, negatives: Tensor) -> Tensor:
    """Say where all positives (B, N) are strictly greater than the negative (B,) -> (B,) bool."""
    return positives.amin(dim=1) > negatives


def matching_chance(entries: int, texts: int) -> float:
    """Return how often a random scorer ranks the N own texts of an image above those of the other entries.

    They must be the N highest of B * N: 1 / C(B * N, N).
    """
    return 1 / math.comb(entries * texts, texts)


class Tally:
    """Counts one `Column` over entries that come one after another; holds one batch."""

    def __init__(self, column: Column, model: PairScorer, batch: int = BATCH) -> None:
        self.column, self.model, self.batch = column, model, batch
        self.rows: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.entries = self.matches = self.pairs = self.wins = self.last = 0
        self.chance = 0.0  # expected matches of a random scorer

    def add(self, entry: Entry, image: Tensor, vectors: dict[str, Tensor]) -> None:
        """Take an entry with what `model` made of its picture and of its texts."""
        if not self.column.takes(entry):
            return
        negative = self.column.negative(entry)
        texts = torch.stack([vectors[text] for text in entry.captions[: self.column.texts]])
        self.rows.append((image, texts, None if negative is None else vectors[negative]))
        if len(self.rows) == self.batch:
            self.close()

    def close(self) -> None:
        """Score the batch so far, full or not."""
        if not self.rows:
            return
        images = torch.stack([image for image, _, _ in self.rows])
        texts = torch.cat([texts for _, texts, _ in self.rows])
        self.last = len(self.rows)
        self.entries += self.last
        self.matches += int(matched(self.model.logits(images, texts), self.column.texts).sum())
        self.chance += self.last * matching_chance(self.last, self.column.texts)
        with_negative = [(image, texts, negative) for image, texts, negative in self.rows if negative is not None]
        if with_negative:
            self._compare(with_negative)
        self.rows = []

    def _compare(self, rows: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        images = torch.stack([image for image, _, _ in rows])
        texts = torch.stack([torch.cat([texts, negative[None]]) for _, texts, negative in rows])  # (B, N + 1, D)
        logits = self.model.own_logits(images, texts)
        self.pairs += len(rows)
        self.wins += int(beaten(logits[:, :-1], logits[:, -1]).sum())

    def scores(self) -> dict[str, float | None]:
        """Return accuracies, chance levels and counts; an accuracy over no entries is None."""
        column, values = self.column, dict[str, float | None]()
        if column.matching:
            values |= {
                column.matching: self.matches / self.entries if self.entries else None,
                f"{column.matching}.chance": self.chance / self.entries if self.entries else None,
                f"{column.matching}.entries": self.entries,
                f"{column.matching}.last_batch": self.last,
            }
        return values | {
            column.negatives: self.wins / self.pairs if self.pairs else None,
            f"{column.negatives}.chance": 1 / (column.texts + 1),
            f"{column.negatives}.entries": self.pairs,
        }


def evaluate(measured: Measured, options: ScorerOptions) -> Scores:
    """Run the benchmark on a run of `granary pack`, or its dataset; without a split all entries are taken.

    Returns:
        For every column its accuracy, `.chance`, `.entries` (and `.last_batch`); None where no entry takes part. Then
        counts: entries read, without any summary, with a picture that cannot be decoded, and texts cut to the context.
    """
    model = load_pair_scorer(measured.model, measured.device, measured.dtype, options.scorer)
    entries = islice(read_entries(measured.data, measured.split), measured.limit)
    return Scores(benchmark(model, entries, measured.batch))


PROTOCOL = Protocol(evaluate, ScorerOptions, batch=32, notes=NOTES, table=False)


def benchmark(model: PairScorer, entries: Iterable[Entry], batch: int = 32) -> dict[str, float | None]:
    """Score entries in the order they come; see `evaluate`."""
    tallies = [Tally(column, model) for column in COLUMNS]
    counts = {"entries": 0, "entries.empty": 0, "entries.unreadable": 0}
    before = model.truncated
    entries = described(entries, counts)
    while chunk := list(islice(entries, batch)):
        pixels = model.prepared([entry.image for entry in chunk])
        counts["entries.unreadable"] += pixels.count(None)
        readable = [(entry, picture) for entry, picture in zip(chunk, pixels, strict=True) if picture is not None]
        if readable:
            score(readable, model, tallies)
    for tally in tallies:
        tally.close()
    scores = {name: value for tally in tallies for name, value in tally.scores().items()}
    return scores | counts | {"texts.truncated": model.truncated - before}


def described(entries: Iterable[Entry], counts: dict[str, int]) -> Iterator[Entry]:
    """Yield the entries with a summary and count the others: masks of quality 2 have none."""
    for entry in entries:
        counts["entries"] += 1
        if entry.captions:
            yield entry
        else:
            counts["entries.empty"] += 1


def score(entries: list[tuple[Entry, Tensor]], model: PairScorer, tallies: list[Tally]) -> None:
    """Encode pictures (3, h, w) and the distinct texts that some column needs, and hand them to every column."""
    texts: dict[str, None] = {}
    for entry, _ in entries:
        for tally in tallies:
            if tally.column.takes(entry):
                needed = [*entry.captions[: tally.column.texts], tally.column.negative(entry)]
                texts.update(dict.fromkeys(text for text in needed if text is not None))
    vectors = dict(zip(texts, model.texts(list(texts)), strict=True))
    for (entry, _), image in zip(entries, model.images(torch.stack([pixels for _, pixels in entries])), strict=True):
        for tally in tallies:
            tally.add(entry, image, vectors)
