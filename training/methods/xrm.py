"""XRM: two networks, each trained on a half of the examples, discover the groups that a shortcut divides classes into.

Pezeshki et al. 2023, "Discovering environments with XRM" (arXiv 2309.16748). Each example is held in by one network
alone. What the other one predicts of it with confidence becomes its label, so that both end up at the shortcut where
that is easier than the class; examples that contradict it then are mistakes: `granary environments` writes them as a
column. No group label is read. Shapes: n rows of the data, B examples, K classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.curation.store.sampling import priority
from granary.training.data import shards
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.losses.cross_risk import balanced_loss, flip_chance
from granary.training.losses.processes import gathered
from granary.training.method import Method, Moment
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.build import build

Share = tuple[float, float]


class XRMOptions(OptionGroup, frozen=True):
    """Options of XRM; defaults are the paper's for pictures."""

    frozen: bool = Field(
        True, description="one frozen backbone under two linear heads, as published; false: two backbones that learn"
    )
    flips: bool = Field(True, description="whether labels are flipped; false is the paper's ablation")
    crop_scale: Share | None = Field(None, description="share of the picture's area in a crop; default: its middle")
    mirror: float = Field(0.0, ge=0, le=1, description="chance that a picture is mirrored")


class Flips(NamedTuple):
    """New labels, kept once the step is taken: rows (B,) int64 and labels (B,) int64."""

    rows: Tensor
    labels: Tensor


class XRM(Method):
    """Twin classifiers, the labels they were given and the labels of now.

    Args:
        config: of the backbones.
        options: of the method.
        known: "classes", label -> share; "labels", (n,) int64 or, for a checkpoint to fill, "rows", their number.
    """

    Options = XRMOptions
    MODEL = {"layer_scale": 0.0}  # noqa: RUF012 read only
    columns = ("image", "label")
    takes_features = True
    evaluated = "encoder"
    original: Tensor
    current: Tensor

    def __init__(self, config: BackboneConfig, options: XRMOptions, known: Mapping[str, object]) -> None:
        super().__init__(config, options, known)
        classes, labels = known["classes"], known.get("labels")
        assert isinstance(classes, Mapping)
        if len(classes) < 2:
            raise UserError(f"data: the column label has {len(classes)} classes; XRM needs at least two")
        self.options, self.classes = options, list(classes)
        self.encoder = build(config)
        self.twin = nn.Identity() if options.frozen else build(config)
        self.heads = nn.ModuleList(nn.Linear(config.width, len(classes)) for _ in range(2))
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        if options.frozen:  # else what cannot learn, tokens of no number, stays so
            self.encoder.requires_grad_(False)
        blank = torch.zeros(int(str(known.get("rows", 0))), dtype=torch.int64)
        given = torch.as_tensor(labels) if labels is not None else blank
        self.register_buffer("original", given.to(torch.int32))
        self.register_buffer("current", given.to(torch.int32))
        self.pending: list[Flips] = []
        self.train()

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> Mapping[str, object]:
        """Return the classes and the label of every row."""
        return {"classes": dict(plan.classes), "labels": shards.row_codes(plan.datasets, "label", plan.classes)}

    @property
    def remembered(self) -> Mapping[str, object]:
        """The classes, and the number of rows; their labels are among the weights."""
        assert isinstance(self.known, Mapping)
        return {"classes": self.known["classes"], "rows": len(self.original)}

    @classmethod
    def imagined(cls, options: OptionGroup) -> Mapping[str, object]:
        """Two classes and no rows."""
        return {"classes": {"0": 0.5, "1": 0.5}, "rows": 0}

    def views(self) -> dict[str, Crop]:
        """The middle of the picture, or a random crop."""
        scale, side = self.options.crop_scale, self.config.img_size
        return {"image": Crop(1, side, scale) if scale else Crop(1, side, centre=True)}

    def train(self, mode: bool = True) -> XRM:
        """Set the mode of what learns; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.options.frozen:
            self.encoder.eval()
        return self

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of the networks that hold the examples in, and the share of labels that are flipped by now.

        In evaluation both networks hold everything out: the loss is that of the labels as they are given.
        """
        features = self.features(batch)
        logits = [head(vectors).float() for head, vectors in zip(self.heads, features, strict=True)]
        if self.training:
            held_in, labels = self.exchange(logits[0], logits[1], batch, moment)
        else:
            held_in, labels = torch.cat(logits), torch.cat([batch["label"]] * 2)
        everyone, _ = gathered(torch.cat([held_in, labels[:, None].float()], dim=1))
        loss = balanced_loss(everyone[:, :-1], everyone[:, -1].detach().long())
        return {"loss": loss, "flip_rate": self.flip_rate(), "features": features[0].detach()}

    def features(self, batch: Part) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, D) of both networks. Raises UserError for features under backbones that learn."""
        if "features" in batch:
            if not self.options.frozen:
                raise UserError("options.frozen: false is not right: features are of one frozen model; leave it out")
            return batch["features"], batch["features"]
        changes = Photometric(flip=self.options.mirror, jitter=0.0, grey=0.0, blur=0.0)
        pixels = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        return self.vectors(normalised(pixels, self.config.mean, self.config.std))

    def vectors(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, D) of both networks: (B, 3, S, S) normalised pictures."""
        first = self.encoder(pixels).cls
        return first, first if self.options.frozen else self.twin(pixels).cls

    def exchange(self, first: Tensor, second: Tensor, batch: Part, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return the logits of the networks that hold the examples in, and the current labels; draw the flips.

        Args:
            first, second: (B, K) logits of the networks.
            batch: with id and row.
            moment: where the run is; the draws of an example are a hash of (seed, step, id).
        """
        mine = torch.from_numpy(sides(moment.seed, batch["id"])).to(first.device)[:, None]
        held_in, held_out = torch.where(mine, first, second), torch.where(mine, second, first).detach()
        labels = self.current[batch["row"]].long()
        if moment.part == 0:
            self.pending = []  # of a step that was not taken
        if self.options.flips:
            draws = torch.from_numpy(priority(moment.seed, batch["id"], f"xrm/flip/{moment.step}") / 2.0**64)
            flipped = (draws.to(first.device) < flip_chance(held_out)) & (labels >= 0)
            self.pending.append(Flips(batch["row"], torch.where(flipped, held_out.argmax(dim=1), labels)))
        return held_in, labels

    def flip_rate(self) -> Tensor:
        """Return the share of the labelled rows whose label is not the one they were given."""
        labelled = self.original >= 0
        return (self.current != self.original).sum() / labelled.sum().clamp(min=1)

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Keep the flips of the step, those of all processes."""
        for flips in self.pending:
            everyone, _ = gathered(torch.stack([flips.rows, flips.labels], dim=1))
            self.current[everyone[:, 0]] = everyone[:, 1].to(self.current.dtype)
        self.pending = []


def sides(seed: int, ids: Sequence[str]) -> NDArray[np.bool_]:
    """Say for each example whether the first network holds it in: by a hash of (seed, id), as any worker knows it."""
    return priority(seed, ids, "xrm/side") % 2 == 1
