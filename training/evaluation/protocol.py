"""What an evaluation protocol is: `Protocol`, and `Measured`, the arguments that all protocols share.

To add one: write training/evaluation/protocols/NAME.py with its options, its `evaluate` and its `PROTOCOL`, and add its
line to `PROTOCOLS` in training/evaluation/protocols/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, ValidationError

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.curation.store import storage
from granary.curation.store.trees import json_tree
from granary.training.data.table import USUAL, Columns
from granary.training.evaluation.scores import Scores

OwnOptions = TypeVar("OwnOptions", bound=Options)
Scorer = Literal["auto", "vectors", "likelihood", "mean_likelihood"]
Shared = Literal["split", "test_data", "batch", "limit", "seed"]


@dataclass(frozen=True)
class Measured:
    """What is measured, and how: the arguments that all protocols share.

    Args:
        model: any name of `granary.training.models.registry`; for protocols of texts an image-text model.
        data: a run, its dataset, or what the protocol reads; a path or URL.
        split: split to measure on; None leaves it to the protocol.
        test_data: another run to measure on, for protocols that also train.
        device: auto, cpu, cuda or cuda:N.
        dtype: float32, bfloat16 or float16.
        batch: samples encoded at once; changes speed only.
        limit: samples of each dataset at most, the first ones; None takes all.
        seed: decides every random choice.
        columns: their names in `data` and `test_data`, where they are not granary's.
    """

    model: str
    data: str
    split: str | None = None
    test_data: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch: int = 64
    limit: int | None = None
    seed: int = 0
    columns: Columns = USUAL


class SplitOptions(Options, frozen=True):
    """The option of protocols that read a split of shards."""

    holdout: float = Field(0.1, description="share of the ids that is test, for shards without a column split")


class ScorerOptions(Options, frozen=True):
    """The option of protocols that score pictures against texts."""

    scorer: Scorer = Field(
        "auto",
        description="what scores a picture with a text; vectors: their product or cosine; likelihood: the log "
        "probability of the text given the picture, of models that say texts; mean_likelihood: the same for each "
        "token; auto: vectors where the model has them",
    )


@dataclass(frozen=True)
class Protocol(Generic[OwnOptions]):
    """A way to measure a model.

    Args:
        evaluate: measures: metric -> value. `METRIC.chance` is the level of a random scorer; other names with a dot and
            counts say what a value was measured on.
        options: its own options; every field with a description.
        takes: which fields of `Measured` it goes by, beside model, data, device and dtype.
        batch: samples encoded at once where nobody says otherwise.
        notes: what a reader of its scores must know, in sentences.
        table: whether it reads a table of pictures, whose columns may have names of their own.
    """

    evaluate: Callable[[Measured, OwnOptions], Scores]
    options: type[OwnOptions]
    takes: tuple[Shared, ...] = ("split", "batch", "limit")
    batch: int = 64
    notes: tuple[str, ...] = ()
    table: bool = True

    def read(self, options: Mapping[str, object]) -> OwnOptions:
        """Return its own options among those that several protocols were given together.

        Raises:
            UserError: a value is not right.
        """
        try:
            return self.options.model_validate({key: value for key, value in options.items() if self.has(key)})
        except ValidationError as error:
            problem = error.errors()[0]
            key = ".".join(str(word) for word in problem["loc"])
            text = problem["msg"].removeprefix("Value error, ")
            raise UserError(f"options.{key}: {problem['input']!r} is not right: {text[:1].lower()}{text[1:]}") from None

    def has(self, option: str) -> bool:
        """Say whether an option is one of its own."""
        return option in self.options.model_fields or option in self.options.FORMER


def text_option(path: str, option: str) -> str:
    """Return the text of the file that an option names. Raises UserError where it cannot be read."""
    try:
        return storage.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"options.{option}: {path} cannot be read ({error})") from error


def json_option(path: str, option: str) -> object:
    """Return what the JSON file holds that an option names. Raises UserError where it cannot be read, or is no JSON."""
    try:
        return json_tree(text_option(path, option))
    except ValueError as error:
        raise UserError(f"options.{option}: {path} is not JSON ({error})") from error


AnyProtocol = Protocol[Any]  # of whatever options: it reads them itself
