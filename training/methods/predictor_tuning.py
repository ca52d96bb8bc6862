"""Fine-tuning of a predictor: what a world model learned of pictures is of use for their classes.

Garrido et al. 2024, "Learning and Leveraging World Models in Visual Representation Learning" (arXiv 2403.00504). The
target encoder of a training of `iwm` or `ijepa` is frozen. Its predictor is asked for all patches of a picture, under
the null action, and learns with a head that pools what it says.

Shapes: B pictures, N patches, D width of the encoder, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.curation.options import Options as OptionGroup
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.losses.classification import labelled_scores
from granary.training.method import Method, Moment, ParameterGroup, standard_groups
from granary.training.methods.ijepa import IJEPA
from granary.training.methods.iwm import IWM
from granary.training.models.attentive_probe import AttentiveProbe
from granary.training.models.backbone_config import BackboneConfig
from granary.training.models.training import load_training
from granary.training.models.vit_config import ViTConfig

WORLDS: Mapping[str, type[IJEPA]] = {"iwm": IWM, "ijepa": IJEPA}


class PredictorTuningOptions(OptionGroup, frozen=True):
    """Options of predictor fine-tuning; defaults are the paper's."""

    teacher: str = Field(min_length=1, description="the training of iwm or ijepa whose encoder and predictor are taken")
    predictor: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: one of its size with initial weights, to compare"
    )
    freeze: bool = Field(True, description="whether the encoder stays as it is")
    head: Literal["attentive", "mean"] = Field(
        "attentive",
        description="linear, on what attentive pooling gathers of the predictor's tokens, or on their mean",
    )
    heads: int = Field(12, ge=1, description="heads of attentive pooling; at most as many as divide the width")
    pretrained_lr: float = Field(0.1, gt=0, description="factor of the learning rate of what is pretrained")
    crop_scale: tuple[float, float] = Field((0.3, 1.0), description="share of the picture's area in a crop")
    flip: float = Field(0.5, ge=0, le=1, description="chance that a picture is mirrored")


class World(NamedTuple):
    """What must be known before the modules can be built.

    Args:
        classes: label -> its share of the samples.
        method, options: of the training that the encoder and the predictor come from.
        weights: of that training, by name; None where they will come from a checkpoint, or are to be initial ones.
    """

    classes: Mapping[str, float]
    method: str
    options: Mapping[str, Any]
    weights: Mapping[str, Tensor] | None = None


class PredictorTuning(Method):
    """The target encoder and the predictor of a training, and a classifier on what the predictor says."""

    Options = PredictorTuningOptions
    MODEL = IJEPA.MODEL
    kinds = IJEPA.kinds
    columns = ("image", "label")
    evaluated = "encoder"
    counts: Tensor

    def __init__(self, config: ViTConfig, options: PredictorTuningOptions, known: World) -> None:
        super().__init__(config, options, known._replace(weights=None))
        if len(known.classes) < 2:
            raise UserError(f"data: the column label has {len(known.classes)} classes; at least two are needed")
        self.options, self.classes = options, list(known.classes)
        kind = WORLDS[known.method]
        world = kind(config, kind.Options.model_validate(known.options))
        self.encoder, self.predictor = world.context, world.predictor
        if known.weights is not None:
            self.encoder.load_state_dict(_below("target.", known.weights))
            if options.predictor == "pretrained":
                self.predictor.load_state_dict(_below("predictor.", known.weights))
        attentive = options.head == "attentive"
        heads, classes = options.heads, len(self.classes)
        self.head = AttentiveProbe(config.width, classes, heads) if attentive else nn.Linear(config.width, classes)
        self.register_buffer("counts", torch.tensor(list(known.classes.values())), persistent=False)
        if options.freeze:
            self.encoder.requires_grad_(False)
        self.train()

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> World:
        """Return the classes, and the training that is fine-tuned with its weights."""
        assert isinstance(options, PredictorTuningOptions)
        return _read(options.teacher, config)._replace(classes=dict(plan.classes))

    @classmethod
    def imagined(cls, options: OptionGroup) -> World:
        """Two classes, and the training that is fine-tuned without its weights."""
        assert isinstance(options, PredictorTuningOptions)
        return _read(options.teacher)._replace(weights=None)

    @property
    def remembered(self) -> dict[str, object]:
        """The fields of `World` but its weights: those of this training hold what has become of them."""
        assert isinstance(self.known, World)
        return {name: value for name, value in self.known._asdict().items() if name != "weights"}

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> World:
        """Return what `learn` returned, without weights."""
        assert isinstance(remembered, dict)
        return World(**remembered)

    def train(self, mode: bool = True) -> PredictorTuning:
        """Set the mode of what learns; a frozen encoder is always in evaluation mode."""
        super().train(mode)
        if self.options.freeze:
            self.encoder.eval()
        return self

    def views(self) -> dict[str, Crop]:
        """One random crop."""
        return {"image": Crop(1, self.config.img_size, self.options.crop_scale)}

    def parameter_groups(self) -> list[ParameterGroup]:
        """What learns; what is pretrained learns slower."""
        slow = self.options.pretrained_lr
        predictor = standard_groups(self.predictor, slow if self.options.predictor == "pretrained" else 1.0)
        encoder = [] if self.options.freeze else standard_groups(self.encoder, slow)
        return [*standard_groups(self.head), *predictor, *encoder]

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return loss and accuracy over the labelled pictures, and the share of the batch that has no label."""
        changes = Photometric(flip=self.options.flip, jitter=0.0, grey=0.0, blur=0.0)
        unit = photometric(to_unit(batch["image"][:, 0]), batch["image_draws"][:, 0], changes)
        tokens = self.predicted(normalised(unit, self.config.mean, self.config.std))
        scores = labelled_scores("cross-entropy", self.classified(tokens), batch["label"], self.counts)
        return {**scores, "features": tokens.mean(dim=1).detach()}

    def predicted(self, pixels: Tensor) -> Tensor:
        """Return what the predictor says of all patches, (B, N, D): of pictures (B, 3, S, S), normalised."""
        tokens = self.encoder(pixels).patches
        every = torch.arange(tokens.shape[1], device=pixels.device).expand(len(pixels), -1)
        told: Tensor = self.predictor(tokens, every, every[None])
        return told

    def classified(self, tokens: Tensor) -> Tensor:
        """Return logits (B, K) of what the predictor says, (B, N, D)."""
        return self.head(tokens if self.options.head == "attentive" else tokens.mean(dim=1))

    def logits(self, pixels: Tensor) -> Tensor:
        """Return what the classifier says of pictures: (B, 3, S, S), normalised -> (B, K)."""
        return self.classified(self.predicted(pixels))


def _read(teacher: str, config: BackboneConfig | None = None) -> World:
    """Return a training with its weights, and two classes that stand for those of the data.

    Args:
        teacher: name of the training.
        config: which its encoder must have.

    Raises:
        UserError: there is no such training, or it is of another method or architecture.
    """
    taught = load_training(teacher)
    name = next((name for name, kind in WORLDS.items() if type(taught) is kind), None)
    if name is None:
        raise UserError(f"options.teacher: {teacher} has no predictor to tune; give a training of iwm or ijepa")
    assert isinstance(taught, IJEPA)
    theirs, ours = asdict(taught.config), asdict(config or taught.config)
    wrong = next((key for key in theirs if key != "drop_path" and theirs[key] != ours[key]), None)
    if wrong:
        raise UserError(f"model.{wrong}: {ours[wrong]} is not right: that of options.teacher, {theirs[wrong]}, is")
    return World({"0": 0.5, "1": 0.5}, name, taught.options.model_dump(mode="json"), taught.state_dict())


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a submodule by their names in it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
