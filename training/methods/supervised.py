"""Supervised classification with any backbone, also under imbalance.

Shapes: B pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data import shards
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.data.ordering import PLAIN, Kind, Ordering
from granary.training.data.reads import Reads
from granary.training.losses.classification import Loss, classification_loss, labelled_scores
from granary.training.losses.processes import gathered
from granary.training.method import Method, Moment, ParameterGroup, layered_groups, standard_groups
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build
from granary.training.models.groups import Groups

ORDERS: Mapping[str, Kind] = {"rwg": "balanced", "subg": "subsample"}


class SupervisedOptions(OptionGroup, frozen=True):
    """Options of supervised training."""

    loss: Loss = Field("cross-entropy", description="balanced-softmax counts classes in the mixture that is trained on")
    crop_scale: tuple[float, float] = Field((0.08, 1.0), description="share of the picture's area in a crop")
    jitter: float = Field(0.0, ge=0, le=1, description="chance that colours are changed")
    grey: float = Field(0.0, ge=0, le=1, description="chance that a picture is grey")
    blur: float = Field(0.0, ge=0, le=1, description="chance that a picture is blurred")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor of the learning rate from one stage to that below")
    freeze: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0, description="first stages that stay as they are, with what is before them; all: the classifier alone learns"
    )
    groups: str | None = Field(None, description="column whose value makes the group of a picture, with its label")
    robust: Literal["erm", "groupdro", "rwg", "subg"] = Field(
        "erm",
        description="erm: all pictures count alike; groupdro: the worst group counts most; rwg: groups are drawn "
        "equally often; subg: they are cut to the size of the smallest",
    )
    group_step: float = Field(0.01, gt=0, description="step size of the weights of groups in groupdro")

    @model_validator(mode="after")
    def _has_groups(self) -> SupervisedOptions:
        if self.robust != "erm" and self.groups is None:
            raise ValueError(f"robust: {self.robust} needs groups, the column that makes them")
        return self


class Supervised(Method):
    """A backbone and a linear classifier on its vector: of a ViT the class token, or the mean patch without one.

    Robust to groups of (label, value of a column): GroupDRO by its loss, RWG and SUBG (Idrissi et al. 2022, arXiv
    2110.14503) by the order of the samples. ERM alone learns from pictures without a value.
    """

    Options = SupervisedOptions
    MODEL = {"layer_scale": 0.0}  # noqa: RUF012 read only
    columns = ("image", "label")
    takes_features = True
    evaluated = "encoder"
    counts: Tensor

    def __init__(self, config: BackboneConfig, options: SupervisedOptions, known: Mapping[str, Any]) -> None:
        super().__init__(config, options, known)
        classes: Mapping[str, float] = known["classes"] if options.groups else known
        if len(classes) < 2:
            labels = f"one class, {next(iter(classes))!r}" if classes else "no row with a label (-1 is none)"
            raise UserError(f"data: the column label has {labels}; supervised training needs at least two classes")
        self.options, self.classes = options, list(classes)
        self.encoder = build(config)
        self.head = nn.Linear(config.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("counts", torch.tensor(list(classes.values())), persistent=False)
        self.frozen = _frozen_layers(self.encoder, options.freeze)
        for name, parameter in self.encoder.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and self.encoder.layer_of(name) > self.frozen)
        self.groups = Groups(known["rows"], options.group_step) if options.groups else None
        self.train()

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Pictures, labels and the column that makes groups; RWG and SUBG have an order of their own."""
        assert isinstance(options, SupervisedOptions)
        if options.groups is None:
            return Reads(cls.columns)
        kind = ORDERS.get(options.robust)
        order = Ordering(kind=kind, by=f"label,{options.groups}") if kind else PLAIN
        return Reads(cls.columns, [options.groups], order=order)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> Mapping[str, Any]:
        """Return label -> share; with groups those as `classes`, and `rows`: for each class those of each value."""
        assert isinstance(options, SupervisedOptions)
        if options.groups is None:
            return plan.classes
        return {"classes": dict(plan.classes), "rows": _group_rows(plan, options.groups)}

    @classmethod
    def imagined(cls, options: OptionGroup) -> Mapping[str, Any]:
        """Two classes, each with the same two values of the column that makes groups."""
        assert isinstance(options, SupervisedOptions)
        classes = {"0": 0.5, "1": 0.5}
        return {"classes": classes, "rows": [[1, 1], [1, 1]]} if options.groups else classes

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> object:
        """Return label -> share; where it was not written, the classes of the head by number, each as frequent."""
        count = len(weights["head.weight"])
        return {str(number): 1 / count for number in range(count)} if remembered is None else remembered

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale)}

    def train(self, mode: bool = True) -> Supervised:
        """Set the mode of what is trained; what is frozen stays in evaluation mode, with its running statistics."""
        super().train(mode)
        for part in _parts(self.encoder, self.frozen):
            part.eval()
        return self

    def parameter_groups(self) -> list[ParameterGroup]:
        """All weights that are not frozen; with `layer_decay` those of the backbone by layer."""
        if self.options.layer_decay == 1:
            return standard_groups(self)
        return [*layered_groups(self.encoder, self.options.layer_decay), *standard_groups(self.head)]

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return loss and accuracy over the labelled pictures, and the share of the batch that has no label."""
        features = batch["features"] if "features" in batch else self.features(batch)
        logits, labels = self.head(features), batch["label"]
        scores = labelled_scores(self.options.loss, logits, labels, self.counts)
        output = {**scores, "features": features.detach()}
        if self.groups is not None:
            output |= self._of_groups(self.groups, logits, labels, batch[str(self.options.groups)], moment)
        return output

    def logits(self, pixels: Tensor) -> Tensor:
        """Return what the classifier says of pictures: (B, 3, S, S), normalised -> (B, K)."""
        return self.head(self.encoder(pixels).cls)

    def features(self, batch: Part) -> Tensor:
        """Return the vectors of a batch's pictures, (B, D)."""
        options = self.options
        changes = Photometric(jitter=options.jitter, grey=options.grey, blur=options.blur)
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        return self.encoder(normalised(pixels, self.config.mean, self.config.std)).cls

    def _of_groups(
        self, groups: Groups, logits: Tensor, labels: Tensor, values: Tensor, moment: Moment
    ) -> dict[str, Tensor]:
        """Return the accuracy of the worst group, and the loss of GroupDRO where that is asked for."""
        truth, kind = labels.clamp(min=0), self.options.loss
        losses = classification_loss(kind, logits.float(), truth, self.counts, reduction="none")
        numbers, right = groups.of(labels, values), logits.argmax(dim=1) == labels
        everyone, _ = gathered(torch.stack([losses, numbers.float(), right.float()], dim=1))
        losses, numbers, right = everyone[:, 0], everyone[:, 1].detach().long(), everyone[:, 2].detach() > 0
        watched = {"worst_group": groups.worst(right, numbers, moment)}
        if self.options.robust == "groupdro":
            watched["loss"] = groups.loss(losses, numbers, moment)
        return watched

    def after_step(self, moment: Moment) -> None:
        """Keep the weights of groups."""
        if self.groups is not None:
            self.groups.follow()


def _group_rows(plan: BatchPlan, column: str) -> list[list[int]]:
    """Return for each class the number of rows of each value of a column. Raises UserError where it has none."""
    names = [plan.categories[name] for name in ("label", column)]
    if not names[1]:
        raise UserError(f"options.groups: no row has a value in the column {column}; name another")
    codes = [shards.row_codes(plan.datasets, name, known) for name, known in zip(("label", column), names, strict=True)]
    rows = np.zeros([len(known) for known in names], np.int64)
    inside = (codes[0] >= 0) & (codes[1] >= 0)
    np.add.at(rows, (codes[0][inside], codes[1][inside]), 1)
    counts: list[list[int]] = rows.tolist()
    return counts


def _frozen_layers(backbone: Backbone, freeze: int | Literal["all"]) -> int:
    """Return the last layer that is frozen, as `Backbone.layer_of` counts them; -1 for none. Raises UserError."""
    stages = len(backbone.stages())
    if freeze == "all":
        return stages + 1
    if freeze > stages:
        raise UserError(f"options.freeze: {freeze} is not right: the model has {stages} stages; give fewer, or all")
    return freeze or -1


def _parts(backbone: Backbone, last: int) -> list[nn.Module]:
    """Return the parts of a backbone up to a layer."""
    names = {name.rpartition(".")[0] for name, _ in backbone.named_parameters() if backbone.layer_of(name) <= last}
    return [*backbone.stages()[: max(0, last)], *(backbone.get_submodule(name) for name in names if name)]
