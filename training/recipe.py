"""The recipe of a training run: every option, its default and its meaning. A method's own options are in its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from granary.curation.options import Options, kind_where_none_is_named
from granary.training.data.ordering import PLAIN, Ordering
from granary.training.data.table import Table
from granary.training.methods import METHODS, load_method
from granary.training.models.architecture import Model, ViTArchitecture
from granary.training.models.backbone_config import BackboneConfig


class Data(Table, frozen=True):
    """One dataset of the mixture."""

    weight: float = Field(1.0, gt=0, description="its share of the samples, relative to the others")


class Schedules(Options, frozen=True):
    """What every kind of optimiser has: its schedules, each by step."""

    kind: str = Field(description="which optimiser")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    start_lr: float = Field(0.0, ge=0, description="learning rate of step 0")
    final_lr: float = Field(1e-6, ge=0, description="learning rate of the last step, by a half cosine")
    warmup: int = Field(0, ge=0, description="steps of linear warmup")
    weight_decay: float = Field(0.05, ge=0, description="weight decay at step 0; never of biases, norms and scales")
    final_weight_decay: float | None = Field(None, ge=0, description="at the last step, by a half cosine; default same")
    clip: float | None = Field(None, gt=0, description="largest gradient norm; default: no clipping")


class AdamW(Schedules, frozen=True):
    """AdamW: the decay is apart from the gradient."""

    kind: Literal["adamw"] = Field("adamw", description="decay apart from the gradient")
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")


class SGD(Schedules, frozen=True):
    """Gradient descent with momentum: the decay is part of the gradient."""

    kind: Literal["sgd"] = Field("sgd", description="momentum, decay in the gradient")
    lr: float = Field(0.1, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay at step 0; never of biases, norms and scales")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step in the next")
    nesterov: bool = Field(False, description="Nesterov's momentum")

    @model_validator(mode="after")
    def _has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class LARS(Schedules, frozen=True):
    """LARS: SGD whose steps are as long as the weights of a layer are large."""

    kind: Literal["lars"] = Field("lars", description="sgd with steps as long as a layer's weights are large")
    lr: float = Field(0.3, gt=0, description="peak learning rate")
    weight_decay: float = Field(1e-6, ge=0, description="weight decay at step 0; never of biases, norms and scales")
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step in the next")
    trust: float = Field(1e-3, gt=0, description="length of a step, relative to the weights; not of biases and norms")


Optimiser = Annotated[AdamW | SGD | LARS, Field(discriminator="kind"), kind_where_none_is_named("adamw")]


class Device(Options, frozen=True):
    """Where and in which numbers the run computes."""

    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="kind of device")
    devices: int = Field(1, ge=1, description="processes of this machine, one device each")
    nodes: int = Field(1, ge=1, description="machines")
    strategy: Literal["auto", "ddp", "fsdp", "ddp_spawn"] = Field("auto", description="how processes share the model")
    batch_norm: Literal["sync", "process"] = Field(
        "sync", description="whose batch BatchNorm takes the mean of: that of all processes, or of one alone"
    )
    precision: Literal["32-true", "bf16-mixed"] = Field(
        "32-true", description="bf16-mixed: in bfloat16, slow on CPUs without it"
    )
    threads: int | None = Field(None, ge=1, description="threads of a CPU process; the same number gives the same bits")
    recompute: bool = Field(False, description="run blocks again in the backward pass: less memory, a third more time")
    compile: bool = Field(False, description="compile the blocks with torch.compile")


class Alarm(Options, frozen=True):
    """The collapse alarm."""

    FORMER: ClassVar[Mapping[str, str]] = {"deviation": "std"}

    every: int = Field(50, ge=0, description="steps between checks; 0: off")
    std: float = Field(0.01, ge=0, description="smallest standard deviation of a feature, relative to its size")
    rank: float = Field(2.0, ge=0, description="smallest effective rank of the centred features")
    projection_std: float = Field(
        0.1, ge=0, description="smallest standard deviation of a projection on the sphere, where 1 is spread evenly"
    )
    entropy: float = Field(0.02, ge=0, le=1, description="smallest entropy of the teacher's mean answer, of ln K")
    stop: bool = Field(False, description="stop, with the state saved, instead of a warning")
    non_finite: int = Field(5, ge=1, description="stop after so many steps in a row whose loss is not finite")


class Probe(Options, frozen=True):
    """The online probe: weighted kNN and a ridge classifier on frozen features."""

    every: int = Field(0, ge=0, description="steps between probes; 0: off")
    data: str | None = Field(None, description="a labelled dataset; default: the first of data")
    train: int = Field(2000, ge=2, description="labelled samples that teach")
    test: int = Field(500, ge=1, description="labelled samples that test")
    k: int = Field(20, ge=1, description="neighbours that vote")


class Validation(Options, frozen=True):
    """The loss of the method on rows that are not trained on."""

    split: str | None = Field(None, description="split whose loss is measured; null: none")
    every: int | None = Field(None, ge=1, description="steps between measurements; default: once an epoch")
    keep_best: bool = Field(False, description="keep the checkpoint with the lowest loss: it is then the model to use")


class Logs(Options, frozen=True):
    """What is written down while training."""

    every: int = Field(10, ge=1, description="steps between rows of metrics.csv")
    tensorboard: bool = Field(True, description="write TensorBoard events too")
    wandb: str | None = Field(None, description="project of Weights & Biases to log to; needs the package wandb")


class Checkpoints(Options, frozen=True):
    """What is kept to go on from."""

    every: int = Field(500, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=2, description="how many are kept; the one before the last is there if that is damaged")


class Features(Options, frozen=True):
    """Training on the features of a frozen encoder."""

    model: str | None = Field(None, description="train on what this model says of the pictures; with its architecture")
    output: Literal["cls", "mean"] = Field("cls", description="its vector of a picture, or the mean of its patches")
    cache: str | None = Field(None, description="folder that keeps features, for several trainings; default: in out")


class TrainRecipe(Options, frozen=True):
    """Train a model on the shards of granary."""

    name: str = Field("trained", pattern=r"^[A-Za-z0-9._ -]+$", description="title of the model")
    method: str = Field(description="what is trained: " + ", ".join(METHODS))
    options: dict[str, object] = Field({}, description="options of the method")
    model: Model = Field(ViTArchitecture(), description="the backbone")
    init: str | None = Field(None, description="weights to start from: a training directory, a checkpoint, hf:ID")
    features: Features = Field(Features(), description="train on features computed once in the place of pictures")
    data: list[Data] = Field(min_length=1, description="datasets and weights; as one line: RUN * 3 + RUN2")
    split: str | None = Field(
        None,
        description="train only on this split, or several: train,shared; where there is no such column, by hash; or on "
        "rows with a value in a column: COLUMN=A,B; both: train & COLUMN=A",
    )
    holdout: float = Field(0.1, gt=0, lt=1, description="share of the ids that is test where no column says so")
    out: str = Field(min_length=1, description="the training directory to write, a path or URL")
    resume: Literal["same", "changed"] = Field(
        "same",
        description="changed: a training in out goes on with another batch, accumulate, streams, window or optimiser; "
        "more steps or epochs, and what only speed depends on, need no leave",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    steps: int | None = Field(None, ge=1, description="optimiser steps")
    epochs: float | None = Field(None, gt=0, description="instead of steps: passes over the data")
    batch: int = Field(64, ge=1, description="pictures in a step, over all processes")
    drop_last: bool = Field(False, description="end an epoch with its last whole batch; each leaves out other pictures")
    accumulate: int = Field(1, ge=1, description="parts a process cuts its pictures into, one after another")
    streams: int | None = Field(
        None, ge=1, description="parts of the order; a multiple of the processes that divides batch; default 8 or less"
    )
    window: int = Field(8192, ge=1, description="rows that are shuffled with one another, over all streams")
    order: Ordering = Field(PLAIN, description="order of the samples")
    workers: int = Field(2, ge=0, description="processes that decode, for each process that trains")
    optimiser: Optimiser = Field(AdamW(), description="the optimiser and its schedules")
    device: Device = Field(Device(), description="where it computes")
    alarm: Alarm = Field(Alarm(), description="collapse alarm")
    probe: Probe = Field(Probe(), description="online probe")
    validation: Validation = Field(Validation(), description="loss on another split; a split alone keeps the best")
    logs: Logs = Field(Logs(), description="logs")
    checkpoints: Checkpoints = Field(Checkpoints(), description="checkpoints")

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"there is no such method; the methods are {', '.join(METHODS)}")
        return name

    @field_validator("data", mode="before")
    @classmethod
    def _mixture(cls, value: object) -> object:
        if isinstance(value, str):
            value = {"path": value}
        if isinstance(value, dict) and isinstance(value.get("path"), str):  # written on the command line
            return [{**value, **_weighted(entry)} for entry in value["path"].split(" + ")]
        entries = value if isinstance(value, list) else [value]
        return [_weighted(entry) if isinstance(entry, str) else entry for entry in entries]

    @field_validator("validation", mode="before")
    @classmethod
    def _split_alone(cls, value: object) -> object:
        return {"split": value, "keep_best": value is not None} if value is None or isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _fill_options(cls, tree: object) -> object:
        """Read what an earlier version wrote; check the method's options and fill in their defaults."""
        name = tree.get("method") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(name, str) or name not in METHODS:
            return tree
        method = load_method(name)
        tree = method.of_earlier(tree)
        try:
            filled = method.Options.model_validate(tree.get("options") or {})
        except ValidationError as error:
            raise ValueError("; ".join(option_sentence(problem) for problem in error.errors())) from None
        return {**tree, "options": filled.model_dump(mode="json")}

    @model_validator(mode="after")
    def _fits(self) -> TrainRecipe:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.streams is not None and self.batch % self.streams:
            raise ValueError(f"streams is {self.streams}; it must divide batch, {self.batch}")
        kinds = load_method(self.method).kinds
        if self.model.kind not in kinds:
            raise ValueError(f"model.kind is {self.model.kind}; {self.method} trains {' and '.join(kinds)} alone")
        if self.device.strategy == "fsdp" and not load_method(self.method).shardable:
            raise ValueError(f"device.strategy: fsdp cannot share out the weights of {self.method}; give ddp")
        if self.features.model and self.init:
            raise ValueError("init: leave it out; with features the weights are those of features.model")
        if self.features.model and not load_method(self.method).takes_features:
            raise ValueError(f"features: method {self.method} needs pictures; leave features out")
        self.config()
        return self

    def config(self) -> BackboneConfig:
        """Return the architecture, with the method's defaults."""
        return self.model.config(load_method(self.method).MODEL)

    def parts(self, processes: int) -> int:
        """Return the number of streams for a number of processes: as given, or 8 a process if the batch allows."""
        if self.streams is not None:
            return self.streams
        return next((n * processes for n in (8, 4, 2) if self.batch % (n * processes) == 0), processes)

    def total_steps(self, samples: int) -> int:
        """Return the number of steps, from the samples of one pass where epochs were given."""
        samples = samples // self.batch * self.batch if self.drop_last else samples
        return self.steps or max(1, math.ceil((self.epochs or 1.0) * samples / self.batch))


def _weighted(text: str) -> dict[str, str]:
    """Read `PATH` or `PATH * weight`."""
    path, star, weight = text.strip().rpartition(" * ")
    return {"path": path.strip(), "weight": weight} if star else {"path": text.strip()}


def option_sentence(problem: ErrorDetails) -> str:
    """Return what is wrong with an option of a method, in a sentence."""
    key = ".".join(["options", *(str(word) for word in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return f"{key}: there is no such key"
    if problem["type"] == "missing":
        return f"{key}: missing; give --{key} or write it in the recipe"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {problem['input']!r} is not right: {text[:1].lower()}{text[1:]}"
