"""VEDIT: the clips of a procedure that are not seen, generated from those that are (Lin et al., arXiv 2410.03478).

Of each clip of a packed video a frozen image encoder gives a latent. A diffusion transformer (VEDiT) generates the
latents of unseen clips from noise, by Euler steps of flow matching, and a light classifier names what they show.
`training unrolled`, the paper's: cross-entropy through all steps from noise, and a little of the loss of flow matching.
`training fm`: the loss of flow matching; the classifier learns on the clips as they are.
Shapes: B videos, O observed clips and N that are told, of L tokens of d numbers, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from granary.curation.options import Options as OptionGroup
from granary.training.data.clip_latents import ClipLook
from granary.training.data.clip_statistics import classes_of_clips, dimension_of, spread_of_latents
from granary.training.data.clip_windows import Task, Windows, WindowViews
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.data.loader import BatchPlan
from granary.training.data.reads import Reads
from granary.training.losses.flow_matching import flow_loss, sigmas_of
from granary.training.losses.processes import gathered
from granary.training.method import Method, Moment
from granary.training.models.attentive_classifier import AttentiveClassifier
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, config_of
from granary.training.models.build import build
from granary.training.models.clip_diffusion import ClipDiffusion, ClipDiffusionConfig
from granary.training.models.registry import load_model

VIDEO = "task"  # what the classifier of whole videos tells
FROM_NOISE, ON_THE_WAY = 0, 1  # purposes of noise
INPUTS = ("observed", "positions", "observed_positions", "present")


class VeditOptions(OptionGroup, frozen=True):
    """Options of VEDIT."""

    encoder: str | None = Field(None, description="frozen image encoder: any model; default: the recipe's, with init")
    latents: str | None = Field(
        None,
        description="column with latents of clips, (clips, d) or (clips, tokens, d), in the place of the encoder's",
    )
    frames: int = Field(8, ge=1, description="frames of a clip that the encoder looks at")
    tokens: Literal["mean", "frames"] = Field("mean", description="of a clip: the mean over its frames, or each frame")
    task: Task = Field(
        "forecasting",
        description="recognition: what a clip shows, among those around it; forecasting: the next clip; planning: "
        "clips of which the first and the last are seen; anticipation: many clips that follow; classification: videos",
    )
    fields: tuple[str, ...] = Field(
        ("step",), min_length=1, description="of a clip, each told by a classifier of its own: step, or verb,noun"
    )
    history: int = Field(8, ge=1, description="clips that are seen at most; planning sees two")
    ahead: int = Field(3, ge=2, description="clips that planning (3, 4) or anticipation (20) tells")
    training: Literal["unrolled", "fm"] = Field(
        "unrolled", description="unrolled: cross-entropy through all steps from noise; fm: flow matching alone"
    )
    flow_weight: float = Field(0.1, ge=0, description="weight of the loss of flow matching, where unrolled")
    latent_weight: float = Field(0.0, ge=0, description="weight of the squared error of what is generated, unrolled")
    euler_steps: int = Field(8, ge=1, description="from noise to latents")
    shift: float = Field(1.0, gt=0, description="above 1 more steps are at high noise")
    width: int = Field(64, ge=4, description="of the diffusion transformer, a multiple of four times its heads")
    blocks: int = Field(4, ge=1, description="of it")
    heads: int = Field(4, ge=1, description="of it")
    recompute: bool = Field(False, description="run each step from noise again in the backward pass: less memory")
    classifier_heads: int = Field(12, ge=1, description="of a classifier, at most")

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.width % (4 * self.heads):
            raise ValueError(f"width is {self.width}; it must be a multiple of four times the {self.heads} heads")
        if self.training == "fm" and self.task in ("recognition", "classification"):
            raise ValueError(f"training is fm, which generates clips that are not seen; {self.task} needs unrolled")
        return self

    @property
    def look(self) -> ClipLook:
        """How the encoder looks at a clip."""
        return ClipLook(self.frames, self.tokens == "mean")

    @property
    def windows(self) -> Windows:
        """Which clips are seen and told."""
        return Windows(self.task, self.history, self.ahead)


@dataclass(frozen=True)
class Known:
    """What is known of the data before a training.

    Args:
        classes: of each classifier, by name.
        dimension: d.
        encoder: frozen.
    """

    classes: Mapping[str, list[str]]
    dimension: int
    encoder: Backbone


class Vedit(Method):
    """A frozen encoder, a diffusion transformer on latents of clips, classifiers.

    Args:
        config: of the encoder, where options name none.
        options: of the method.
        known: as `learn` returns it, or what is `remembered` of it.
    """

    Options: ClassVar[type[OptionGroup]] = VeditOptions
    columns = ("clips",)
    shardable = False
    evaluated = "encoder"
    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, options: VeditOptions, known: Known | Mapping[str, Any]) -> None:
        known = known if isinstance(known, Known) else _rebuilt(known, config)
        super().__init__(known.encoder.config, options, None)
        self.options, self.classes, self.encoder = options, known.classes, known.encoder.requires_grad_(False)
        self.clips = None if options.latents else options.look
        sizes = ClipDiffusionConfig(known.dimension, options.width, options.blocks, options.heads)
        self.diffusion = ClipDiffusion(sizes)
        self.diffusion.recompute = options.recompute
        self.classifiers = nn.ModuleDict(
            {
                name: AttentiveClassifier(known.dimension, len(classes), options.classifier_heads)
                for name, classes in known.classes.items()
            }
        )
        self.register_buffer("mean", torch.zeros(known.dimension))
        self.register_buffer("std", torch.ones(known.dimension))
        self.train()

    @classmethod
    def reads(cls, options: OptionGroup) -> Reads:
        """Clips, the videos or their latents, and for whole videos their labels; a window of each video."""
        assert isinstance(options, VeditOptions)
        label = ["label"] if options.task == "classification" else []
        views = WindowViews(options.windows, options.fields, options.latents)
        return Reads(["clips", options.latents or "video", *label], views=views)

    @classmethod
    def learn(cls, config: BackboneConfig, options: OptionGroup, plan: BatchPlan, out: str) -> Known:
        """Return classes, the size of a latent and the encoder; raises UserError where there are none."""
        assert isinstance(options, VeditOptions)
        if options.task == "classification":
            classes = {VIDEO: list(plan.classes)}
        else:
            classes = classes_of_clips(plan.datasets, options.fields)
        encoder = build(config) if options.encoder is None else load_model(options.encoder)
        if options.latents is None:
            return Known(classes, encoder.config.width, encoder)
        return Known(classes, dimension_of(plan.datasets, options.latents), encoder)

    @property
    def remembered(self) -> dict[str, object]:
        """What builds the modules again."""
        dimension = self.diffusion.config.dimension
        return {"classes": dict(self.classes), "dimension": dimension, "encoder": asdict(self.config)}

    @classmethod
    def imagined(cls, options: OptionGroup) -> dict[str, object]:
        """Two classes of everything, and latents as wide as the recipe's encoder."""
        assert isinstance(options, VeditOptions)
        names = [VIDEO] if options.task == "classification" else options.fields
        encoder = None if options.encoder is None else asdict(load_model(options.encoder).config)
        return {"classes": {name: ["0", "1"] for name in names}, "dimension": None, "encoder": encoder}

    def look(self, plan: BatchPlan) -> None:
        """Take mean and deviation of the latents of all clips."""
        spread = spread_of_latents(plan)
        self.mean.copy_(spread.mean)
        self.std.copy_(spread.std)

    def views(self) -> dict[str, Crop]:
        """No pictures: a window is cut out of the clips, see `reads`."""
        return {}

    def train(self, mode: bool = True) -> Self:
        """Keep the encoder in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, batch: Part, moment: Moment) -> dict[str, Tensor]:
        """Return the loss of a window of each video: of all classifiers together, and of flow matching."""
        options, clean = self.options, self.standard(batch["targets"])
        noise, _ = self._drawn(batch["id"], moment, FROM_NOISE, clean)
        flow = self.flow(batch, *self._drawn(batch["id"], moment, ON_THE_WAY, clean))
        if options.training == "fm":
            return {**self.scores(self.answers(clean), batch, flow), "flow": flow.detach()}
        made = self.generated(batch, noise)
        error = F.mse_loss(made, clean)
        further = options.flow_weight * flow + options.latent_weight * error
        watched = {"flow": flow.detach(), "latent_error": error.detach(), "features": made.detach().mean(dim=(1, 2))}
        return {**self.scores(self.answers(made), batch, further), **watched}

    def standard(self, latents: Tensor) -> Tensor:
        """Return latents (..., d) with mean 0 and deviation 1 over the clips that were trained on."""
        return (latents - self.mean) / self.std

    def flow(self, batch: Part, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss of flow matching of the clips to be told.

        Args:
            batch: as `WindowViews.cut` makes windows.
            noise: (B, N, L, d).
            sigma: (B,) levels, 0 to 1.
        """
        given = self._given(batch)
        return flow_loss(
            lambda x, time: self.diffusion(x, time, **given), self.standard(batch["targets"]), noise, sigma
        )

    def generated(self, batch: Part, noise: Tensor) -> Tensor:
        """Return the standardised latents (B, N, L, d) that noise leads to; nothing is known of the clips themselves.

        Args:
            batch: as `WindowViews.cut` makes windows.
            noise: (B, N, L, d), another one for each candidate.
        """
        return self.diffusion.generated(
            noise, sigmas_of(self.options.euler_steps, self.options.shift), **self._given(batch)
        )

    def answers(self, latents: Tensor) -> dict[str, Tensor]:
        """Return the logits of standardised latents (B, N, L, d): of each classifier (B, N, K), of videos (B, 1, K)."""
        if self.options.task == "classification":
            return {VIDEO: self.classifiers[VIDEO](latents.flatten(1, 2))[:, None]}
        tokens = latents.flatten(0, 1)
        return {name: head(tokens).unflatten(0, latents.shape[:2]) for name, head in self.classifiers.items()}

    def truth(self, batch: Part) -> dict[str, Tensor]:
        """Return the classes of what is told, as `answers` has them: (B, N), of videos (B, 1); -1 for none."""
        device = batch["targets"].device
        if self.options.task == "classification":
            return {VIDEO: batch["label"][:, None]}
        truth = {}
        for place, (name, classes) in enumerate(self.classes.items()):
            numbers = {text: number for number, text in enumerate(classes)}
            rows = [[numbers.get(str(text), -1) for text in told[place]] for told in batch["told"]]
            truth[name] = torch.tensor(rows, device=device)
        return truth

    def scores(self, answers: Mapping[str, Tensor], batch: Part, further: Tensor) -> dict[str, Tensor]:
        """Return loss and accuracies: cross-entropy over what has a class, of all classifiers, and further losses."""
        loss, scores = further, {}
        for name, truth in self.truth(batch).items():
            logits, labels = answers[name].flatten(0, 1).float(), truth.flatten()
            known = (labels >= 0).sum()
            everyone, _ = gathered(known[None])  # so that processes with fewer classes do not count more
            loss = loss + F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum") / max(
                1.0, float(everyone.float().mean())
            )
            scores[f"{name}_accuracy"] = (logits.argmax(dim=1) == labels).sum() / known.clamp(min=1)
        return {"loss": loss, **scores}

    def _given(self, batch: Part) -> dict[str, Tensor]:
        """Return what the diffusion transformer is told of a window."""
        return {**{name: batch[name] for name in INPUTS}, "observed": self.standard(batch["observed"])}

    def _drawn(self, ids: Sequence[str], moment: Moment, purpose: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return noise and levels (B,) of each video, by its id: the same in any batch, on any process."""
        generators = [moment.picture_generator(identity, purpose) for identity in ids]
        noise = np.stack([some.standard_normal(like.shape[1:], dtype=np.float32) for some in generators])
        sigma = np.array([some.random(dtype=np.float32) for some in generators])
        return torch.from_numpy(noise).to(like.device), torch.from_numpy(sigma).to(like.device)


def _rebuilt(known: Mapping[str, Any], config: BackboneConfig) -> Known:
    """Return what is known, with an encoder of initial weights; `config` is its own where nothing else is known."""
    encoder = build(config_of(known["encoder"]) if known["encoder"] else config)
    return Known(known["classes"], known["dimension"] or encoder.config.width, encoder)
