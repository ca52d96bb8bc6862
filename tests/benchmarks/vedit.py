"""VEDIT on the steps of real videos with simulated latents: does it use history under noisy evidence, and do several
candidates help?

    python -m tests.benchmarks.vedit OUT [--lists crosstask] [--noise 0.34] [--steps 450] [--long 200]

The steps are those of CrossTask (or, with --lists coin, of COIN) and the actions of EPIC-KITCHENS-100; no video of
them is here, so the latent of a clip is a unit vector of its step (of EPIC one of its verb beside one of its noun),
32 numbers each, and noise on every number: so much that of the clips of CrossTask about 57 % are nearest to their own
step, as often as an encoder of ProcedureVRL recognises those of COIN. Every fifth video is the test, every fifteenth
the validation; for the next step each of the others is there eight times, with other noise, as it would be with other
frames. Compared with the next step that VEDIT tells are, on the same latents: the bigram of the step that is nearest,
of all steps weighted by how likely they are, a linear layer on the last latent, a plain transformer of as many
weights, and Bayes' rule over the whole history, which knows noise and bigrams: the most that an order of one can
give.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from datasets import List, Value
from numpy.typing import NDArray
from torch import Tensor, nn

from granary.curation.store.schema import arrow_schema, sample_features
from granary.training.methods.vedit import Vedit
from granary.training.models.training import load_training
from tests.benchmarks.cells import Cells, Numbers, bar, scores, trained
from tests.places import SHARED

WIDTH, HISTORY, BATCH, AHEAD, CANDIDATES, DRAWS = 32, 6, 128, 20, 5, 8
NOISE, TEMPERATURES = 0.26, (0.0, 0.5, 1.0)  # of anticipation
FIELDS = ("step", "verb", "noun")
CLIP = {name: Value("float64") for name in ("start", "end")} | {name: Value("string") for name in FIELDS}
COLUMNS = {"split": Value("string"), "clips": List(CLIP), "latents": List(List(Value("float32")))}
Row = dict[str, Any]
Steps = NDArray[np.int64]
Values = NDArray[np.float64]


def coin() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield videos of COIN and their steps."""
    for video in lines("steps_coin_dev.jsonl.gz"):
        yield video["video"], [{"step": str(step["step_id"])} for step in video["steps"]]


def crosstask() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield videos of CrossTask and their steps, which are counted from 0 in each task."""
    for video in lines("steps_crosstask_dev.jsonl.gz"):
        yield video["video"], [{"step": f"{video['task']}/{step}"} for step in video["steps"]]


LISTS = {"crosstask": (crosstask, 0.34), "coin": (coin, 0.26)}  # and the noise


def epic() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield videos of EPIC-KITCHENS-100 and their actions."""
    videos = defaultdict(list)
    for action in lines("steps_epic100_dev.jsonl.gz"):
        videos[action["video"]].append(action)
    for name, actions in videos.items():
        ordered = sorted(actions, key=lambda action: int(action["start_frame"]))
        yield name, [{"verb": str(one["verb_class"]), "noun": str(one["noun_class"])} for one in ordered]


def lines(name: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON lines."""
    with gzip.open(SHARED / name, "rt") as file:
        yield from map(json.loads, file)


def simulated(
    videos: Iterator[tuple[str, list[dict[str, str]]]], fields: Sequence[str], noise: float, draws: int = 1
) -> Iterator[Row]:
    """Yield rows of videos whose latents are unit vectors of what their clips show, and noise.

    Args:
        videos: of a list.
        fields: of its clips.
        noise: deviation of each number.
        draws: rows of a video of training, each with noise of its own.
    """
    known, random = list(videos), np.random.default_rng(0)
    names = {field: sorted({clip[field] for _, clips in known for clip in clips}) for field in fields}
    units = {field: unit_vectors(names[field], random) for field in fields}
    for number, (name, clips) in enumerate(known):
        clean = np.array([np.concatenate([units[field][clip[field]] for field in fields]) for clip in clips])
        part = "test" if number % 5 == 0 else "validation" if number % 15 == 1 else "train"
        times = [{"start": float(place), "end": place + 1.0} for place in range(len(clips))]
        for draw in range(draws if part == "train" else 1):
            key, latents = f"{name}-{draw}" if draws > 1 else name, clean + noise * random.standard_normal(clean.shape)
            yield {
                "id": key, "image": {"bytes": b"", "path": None}, "width": 0, "height": 0, "label": None,
                "captions": [], "source": {"name": "steps", "uri": key}, "split": part,
                "latents": latents.astype(np.float32).tolist(),
                "clips": [{**dict.fromkeys(FIELDS), **time, **clip} for time, clip in zip(times, clips, strict=True)],
            }  # fmt: skip


def unit_vectors(names: Sequence[str], random: np.random.Generator) -> Mapping[str, Values]:
    """Return a random unit vector for each name."""
    vectors = random.standard_normal((len(names), WIDTH))
    return dict(zip(names, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))


def write_run(folder: Path, rows: Callable[[], Iterator[Row]]) -> str:
    """Write rows as a run, unless they are there; returns its folder."""
    target = folder / "dataset" / "data" / "shard-00000-of-00001.parquet"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        schema = arrow_schema(sample_features(COLUMNS))
        part = target.with_suffix(".part")
        pq.write_table(pa.Table.from_pylist(list(rows()), schema), part, row_group_size=500)
        part.rename(target)
    return str(folder)


class NextSteps:
    """The windows of a split: latents (n, 6, d) of at most six clips, the last one last, and the next step.

    Args:
        run: of `simulated`.
        split: train or test.
        classes: of steps.
    """

    def __init__(self, run: str, split: str, classes: Mapping[str, int]) -> None:
        table = pq.read_table(Path(run) / "dataset" / "data", columns=["split", "clips", "latents"])
        rows = [row for row in table.to_pylist() if row["split"] in (split,)]
        self.sequences = [[classes.get(clip["step"], -1) for clip in row["clips"]] for row in rows]
        self.latents = [np.array(row["latents"]) for row in rows]
        windows = [(number, cut) for number, steps in enumerate(self.sequences) for cut in range(1, len(steps))]
        self.next: Steps = np.array([self.sequences[number][cut] for number, cut in windows])
        self.history = np.zeros((len(windows), HISTORY, WIDTH))
        self.present = np.zeros((len(windows), HISTORY), bool)
        for place, (number, cut) in enumerate(windows):
            seen = self.latents[number][max(0, cut - HISTORY) : cut]
            self.history[place, HISTORY - len(seen) :] = seen
            self.present[place, HISTORY - len(seen) :] = True


def bigrams(sequences: Sequence[Sequence[int]], count: int) -> tuple[Values, Values]:
    """Return how often each step begins a video, (K,), and follows each, (K, K), as chances; none is impossible."""
    first, follows = np.full(count, 1e-3), np.full((count, count), 1e-3)
    for steps in sequences:
        for place, step in enumerate(steps):
            if place:
                follows[steps[place - 1], step] += 1
            else:
                first[step] += 1
    return first / first.sum(), follows / follows.sum(axis=1, keepdims=True)


def references(training: NextSteps, test: NextSteps, noise: float, count: int) -> Numbers:
    """Return the accuracies of what needs no deep network, on the windows of the test."""
    centres = np.zeros((count, WIDTH))
    steps = np.concatenate([np.array(some) for some in training.sequences])
    np.add.at(centres, steps, np.concatenate(training.latents))
    centres /= np.maximum(1, np.bincount(steps, minlength=count))[:, None]
    first, follows = bigrams(training.sequences, count)
    prior = np.bincount(steps, minlength=count) + 1e-3
    fits = -distances(test.history, centres) / (2 * noise**2)
    last = fits[:, -1]
    belief = softmax(last + np.log(prior))
    believed = filtered(fits, test.present, first, follows)
    said = {
        "bigram of the nearest step": follows[last.argmax(axis=1)],
        "bigram of all steps as likely": belief @ follows,
        "Bayes over the history": believed @ follows,
    }
    accuracy = {name: 100 * float((chances.argmax(axis=1) == test.next).mean()) for name, chances in said.items()}
    return {"clip recognised": 100 * recognised(test, centres), **accuracy}


def filtered(fits: Values, present: NDArray[np.bool_], first: Values, follows: Values) -> Values:
    """Return how likely each step is at the last clip, given all clips that are seen: (n, K).

    Args:
        fits: (n, O, K) log likelihoods of latents, but for a constant of each.
        present: (n, O) which are there, the last ones.
        first, follows: of `bigrams`.
    """
    believed = np.broadcast_to(first, fits[:, 0].shape)
    for place in range(fits.shape[1]):
        begins = ~present[:, place - 1] if place else np.ones(len(fits), bool)
        reached = np.where(begins[:, None], first, believed @ follows)
        moved = softmax(fits[:, place] + np.log(reached))
        believed = np.where(present[:, place][:, None], moved, believed)
    return believed


def recognised(test: NextSteps, centres: Values) -> float:
    """Return the share of clips whose step is the nearest."""
    latents, steps = np.concatenate(test.latents), np.concatenate([np.array(some) for some in test.sequences])
    return float((distances(latents, centres).argmin(axis=1) == steps).mean())


def distances(latents: Values, centres: Values) -> Values:
    """Return the squared distances of latents (..., d) from centres (K, d): (..., K)."""
    lengths = (latents**2).sum(axis=-1, keepdims=True)
    apart: Values = lengths - 2 * latents @ centres.T + (centres**2).sum(axis=1)
    return apart


def softmax(logits: Values) -> Values:
    """Return chances, (..., K)."""
    chances: Values = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return chances / chances.sum(axis=-1, keepdims=True)


class Plain(nn.Module):
    """A transformer on the clips that are seen and a query: (B, O, d) -> (B, K); as many weights as VEDIT's, about.

    Args:
        classes: K.
        width, blocks: D and how many.
    """

    def __init__(self, classes: int, width: int = 80, blocks: int = 5) -> None:
        super().__init__()
        self.read, self.query = nn.Linear(WIDTH, width), nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, HISTORY, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.tell = nn.Linear(width, classes)

    def forward(self, history: Tensor, present: Tensor) -> Tensor:
        """Return logits."""
        tokens = torch.cat([self.read(history) + self.places, self.query.expand(len(history), -1, -1)], dim=1)
        absent = torch.cat([~present, present.new_zeros(len(present), 1)], dim=1)
        return self.tell(self.blocks(tokens, src_key_padding_mask=absent)[:, -1])


class Linear(nn.Module):
    """A linear layer on the last latent: (B, O, d) -> (B, K)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.tell = nn.Linear(WIDTH, classes)

    def forward(self, history: Tensor, present: Tensor) -> Tensor:
        """Return logits."""
        return self.tell(history[:, -1])


def fitted(model: nn.Module, training: NextSteps, held: NextSteps, test: NextSteps, steps: int, lr: float) -> Numbers:
    """Train a reference by cross-entropy; returns accuracy at its best validation loss, and weights."""
    sets = [
        (torch.tensor(some.history, dtype=torch.float32), torch.tensor(some.present), torch.tensor(some.next))
        for some in (training, held, test)
    ]
    scale = sets[0][0][sets[0][1]].std()
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps, pct_start=0.05)
    generator, best, accuracy = torch.Generator().manual_seed(0), float("inf"), 0.0
    for step in range(1, steps + 1):
        rows = torch.randint(len(sets[0][2]), (BATCH,), generator=generator)
        history, present, truth = (values[rows] for values in sets[0])
        optimiser.zero_grad()
        F.cross_entropy(model(history / scale, present), truth).backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            with torch.no_grad():
                loss = float(F.cross_entropy(model(sets[1][0] / scale, sets[1][1]), sets[1][2], ignore_index=-1))
                if loss < best:
                    said = model(sets[2][0] / scale, sets[2][1]).argmax(dim=1)
                    best, accuracy = loss, 100 * float((said == sets[2][2]).float().mean())
    return {"accuracy": accuracy, "weights": float(sum(p.numel() for p in model.parameters()))}


def next_step(out: Path, lists: str, noise: float, steps: int) -> Numbers:
    """Return the accuracies of the next step."""
    videos, _ = LISTS[lists]
    run = write_run(out / f"{lists}-{noise}", partial(simulated, videos(), ("step",), noise, DRAWS))
    names = sorted({clip["step"] for _, clips in videos() for clip in clips})
    classes = {name: number for number, name in enumerate(names)}
    training, held, test = (NextSteps(run, split, classes) for split in ("train", "validation", "test"))
    numbers = references(training, test, noise, len(names))
    torch.manual_seed(0)
    for name, model, lr in (("linear", Linear(len(names)), 1e-2), ("plain transformer", Plain(len(names)), 1e-3)):
        found = fitted(model, training, held, test, steps, lr)
        numbers |= {name: found["accuracy"], f"{name}.weights": found["weights"]}
    folder = out / f"{lists}-{noise}-{steps}"
    model = trained(
        "vedit_tiny.yaml", run, folder, options__latents="latents", steps=steps, validation__split="validation",
        validation__keep_best="true", validation__every=50,
    )  # fmt: skip
    method = load_training(model)
    assert isinstance(method, Vedit)
    said = scores(model, run, {"procedures": {"candidates": CANDIDATES}})
    numbers |= {"VEDIT": 100 * said["procedures.step_accuracy"], "windows": said["procedures.windows"]}
    parts = (method.diffusion, method.classifiers)
    return numbers | {"VEDIT.weights": float(sum(p.numel() for part in parts for p in part.parameters()))}


def anticipated(out: Path, noise: float, steps: int) -> Numbers:
    """Return the edit distances of twenty actions of EPIC, drawn at the temperature that is best on the validation."""
    run = write_run(out / f"epic-{noise}", partial(simulated, epic(), ("verb", "noun"), noise))
    model = trained(
        "vedit_tiny.yaml", run, out / f"epic-{noise}-{steps}", steps=steps, batch=32, options__latents="latents",
        options__fields="[verb,noun]", options__task="anticipation", options__ahead=AHEAD, options__history=12,
        options__blocks=3, options__euler_steps=4,
        validation__split="validation", validation__keep_best="true", validation__every=25,
    )  # fmt: skip

    def told(temperature: float, split: str) -> Numbers:
        options = {"candidates": CANDIDATES, "temperature": temperature}
        said = scores(model, run, {"procedures": options}, split=split)
        return {key.removeprefix("procedures."): value for key, value in said.items()}

    edits = {t: sum(told(t, "validation")[f"{field}_edit"] for field in ("verb", "noun")) for t in TEMPERATURES}
    best = min(edits, key=lambda temperature: edits[temperature])
    return {**told(best, "test"), "temperature": best}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lists", choices=LISTS, default="crosstask")
    parser.add_argument("--noise", type=float, help="of the next step; default: 0.34, of COIN 0.26")
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--long", type=int, default=200, help="steps of anticipation")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells(given.out / "cells.json")
    noise = given.noise or LISTS[given.lists][1]
    work = partial(next_step, given.out, given.lists, noise, given.steps)
    told = cells.measured(f"next step, {given.lists}, noise {noise}, {given.steps} steps", work)
    for name, value in told.items():
        print(f"{name:32} {value:,.1f}")
    mine = told["VEDIT"]
    bar("next step 3 points above the bigram of the nearest step", mine >= told["bigram of the nearest step"] + 3)
    bar("and above a linear layer on the last latent", mine > told["linear"])
    bar("and at most 1 below a plain transformer", mine >= told["plain transformer"] - 1)
    edits = cells.measured(f"anticipation, {given.long} steps", partial(anticipated, given.out, NOISE, given.long))
    for field, most in (("verb", 0.72), ("noun", 0.85)):
        found, one, usual = (edits[f"{field}_edit{name}"] for name in ("", ".one_candidate", ".most_common"))
        print(f"{field}: ED@20 {found:.3f} of {CANDIDATES} candidates, {one:.3f} of one, {usual:.3f} always the same")
        bar(f"{field} ED@20 below {most}", found < most)
        bar(f"{field} ED@20 of {CANDIDATES} below that of one", found < one)


if __name__ == "__main__":
    main()
