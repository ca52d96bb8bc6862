"""DINOv2: self-distillation of pictures (DINO) and of masked patches (iBOT) (Oquab et al. 2023, arXiv 2304.07193).

With a `teacher` it distils: a frozen larger model gives the targets, and the student's average is the model to use.
Shapes: B pictures, L local views, N patches of a global view, M masked patches of a batch, D width, K prototypes.
Views are stacked view-major: row v * B + b is view v of picture b.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from granary.curation.errors import UserError
from granary.curation.options import Options
from granary.training.data.augment import Photometric, normalised, photometric, to_unit
from granary.training.data.collate import Part
from granary.training.data.crops import Crop
from granary.training.losses.self_distillation import (
    Centre,
    dino_losses,
    entropies,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
)
from granary.training.masking.block_wise import draw_block_masks
from granary.training.method import Method, Moment, ParameterGroup, decays
from granary.training.models.average import average
from granary.training.models.backbone import Backbone
from granary.training.models.backbone_config import BackboneConfig, config_of
from granary.training.models.build import build
from granary.training.models.teacher import load_teacher
from granary.training.models.vit import VisionTransformer
from granary.training.models.vit_config import ViTConfig
from granary.training.schedules import cosine, linear

MASKS = 1  # purpose of random draws
Share = tuple[float, float]
HeadSizes = tuple[int, int, int, int]  # width, hidden width, bottleneck, prototypes


class DINOv2Options(Options, frozen=True):
    """Options of DINOv2; defaults are the authors' code's, with Sinkhorn-Knopp and untied heads."""

    FORMER: ClassVar[Mapping[str, str]] = {"global_side": "global_size", "local_side": "local_size"}

    teacher: str | None = Field(None, description="distil from this DINOv2 training, frozen; its heads set prototypes")
    prototypes: int = Field(65536, ge=2, description="K of the DINO head (paper, large models: 131072)")
    patch_prototypes: int | None = Field(None, ge=2, description="K of the iBOT head; default that of the DINO head")
    hidden: int = Field(2048, ge=1, description="width of the heads' hidden layers")
    bottleneck: int = Field(256, ge=1, description="width before the prototypes, DINO head (paper, large models: 384)")
    patch_bottleneck: int = Field(256, ge=1, description="width before the prototypes, iBOT head")
    untied: bool = Field(True, description="give patches a head of their own")
    fixed_gain: bool = Field(False, description="leave the lengths of prototypes at 1 (DINO, iBOT: but for ViT-S)")
    global_size: int | None = Field(None, ge=1, description="pixels of a global view; default the model's side")
    local_crops: int = Field(8, ge=0, description="L, local views of a picture")
    local_size: int = Field(96, ge=1, description="pixels of a local view; a multiple of the patch")
    global_scale: Share = Field((0.32, 1.0), description="share of the picture's area in a global view")
    local_scale: Share = Field((0.05, 0.32), description="share of the picture's area in a local view")
    jitter: float = Field(0.8, ge=0, le=1, description="chance that the colours of a view are changed")
    grey: float = Field(0.2, ge=0, le=1, description="chance that a view is grey")
    blur: tuple[float, float, float] = Field((1.0, 0.1, 0.5), description="chances: first and second global, local")
    sigma: Share = Field((0.1, 2.0), description="least and largest blur in pixels")
    solarize: float = Field(0.2, ge=0, le=1, description="chance that the second global view is solarized")
    targets: Literal["sinkhorn", "centring"] = Field("sinkhorn", description="how the teacher's answers are balanced")
    centre_momentum: float = Field(0.9, ge=0, le=1, description="of the centre, with targets: centring")
    centre_patches: Literal["masked", "all"] = Field(
        "masked", description="which patches' answers their centre follows: masked as DINOv2, all as iBOT"
    )
    student_temperature: float = Field(0.1, gt=0, description="of the student's softmax")
    start_temperature: float = Field(0.04, gt=0, description="of the teacher at step 0")
    teacher_temperature: float = Field(0.07, gt=0, description="of the teacher after its warmup")
    temperature_warmup: int = Field(37500, ge=0, description="steps from the one to the other")
    momentum: float = Field(0.994, ge=0, le=1, description="of the student's average at step 0, half cosine to 1")
    ibot: float = Field(1.0, ge=0, description="weight of the patches' loss; 0: no masks, no iBOT head")
    koleo: float = Field(0.1, ge=0, description="weight of KoLeo, for each global view")
    mask_share: float = Field(0.5, ge=0, le=1, description="share of global views that are masked")
    mask_ratio: Share = Field((0.1, 0.5), description="least and largest share of masked patches in one")
    smallest_block: int = Field(4, ge=1, description="least patches of a block that is masked as one (iBOT: 16)")
    freeze: int = Field(1250, ge=0, description="first steps in which the heads' last layers stay as they are")
    layer_decay: float = Field(1.0, gt=0, le=1, description="factor of the learning rate from one block to that below")
    patch_lr: float = Field(0.2, gt=0, description="factor of the patch embedding's learning rate")


class DINOHead(nn.Module):
    """Tokens (R, D) -> logits (R, K): an MLP of three layers, unit length, prototypes of learned or unit length."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int, fixed_gain: bool = False) -> None:
        super().__init__()
        self.sizes = (width, hidden, bottleneck, prototypes)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for name, parameter in self.mlp.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.trunc_normal_(parameter, std=0.02)
        self.last_layer = weight_norm(nn.Linear(bottleneck, prototypes, bias=False))
        lengths = self.last_layer.get_parameter("parametrizations.weight.original0")  # (K, 1)
        nn.init.ones_(lengths).requires_grad_(not fixed_gain)

    def forward(self, tokens: Tensor) -> Tensor:
        """(R, D) -> (R, K)."""
        return self.last_layer(F.normalize(self.mlp(tokens), dim=-1, eps=1e-6))


class TeacherSizes(NamedTuple):
    """What builds a frozen teacher without reading it: its config.json, and what each of its heads is made of."""

    config: Mapping[str, object]
    heads: Mapping[str, HeadSizes]

    def build(self) -> tuple[Backbone, nn.ModuleDict]:
        """Return backbone and heads with initial weights."""
        backbone = build(config_of(self.config))
        heads = nn.ModuleDict({name: DINOHead(*sizes) for name, sizes in self.heads.items()})
        return backbone.requires_grad_(False), heads.requires_grad_(False)


class TeacherShapes(NamedTuple):
    """What a distillation wrote of its frozen teacher before its sizes were remembered: the shapes of its weights."""

    shapes: Mapping[str, Sequence[int]]

    def sizes(self, student: ViTConfig) -> TeacherSizes:
        """Return the sizes these weights have. The number of heads is in none: they are taken as wide as the student's.

        Args:
            student: its architecture, which is that of the teacher where weights do not say it.
        """
        shapes = self.shapes
        width, _, patch, _ = shapes["frozen.embed.weight"]
        depth = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("frozen.blocks."))
        config = replace(
            student,
            width=width,
            depth=depth,
            heads=max(1, width * student.heads // student.width),
            mlp_ratio=shapes["frozen.blocks.0.mlp.down.weight"][1] / width,
            registers=shapes["frozen.registers"][-2],
            img_size=patch * math.isqrt(shapes["frozen.positions"][-2]),
        )
        heads = dict[str, HeadSizes]()
        for name in ("dino", "ibot"):
            head = f"frozen_heads.{name}"
            if prototypes := shapes.get(f"{head}.last_layer.parametrizations.weight.original1"):
                hidden, bottleneck = (shapes[f"{head}.mlp.{layer}.weight"][0] for layer in (0, 4))
                heads[name] = (width, hidden, bottleneck, prototypes[0])
        return TeacherSizes(asdict(config), heads)


class Masked(NamedTuple):
    """Which patches are masked: chosen (2B, N) bool, None for none; places (M,) in 2B * N; weights (M,) of each."""

    chosen: Tensor | None
    places: Tensor
    weights: Tensor


Teach = Callable[[Tensor, Masked, float], tuple[Tensor, Tensor | None]]  # see `DINOv2.targets`


class DINOv2(Method):
    """Student, its average the teacher, and with `options.teacher` a frozen model that gives the targets instead."""

    Options = DINOv2Options
    MODEL = {"mask_token": True}  # noqa: RUF012 read only
    columns = ("image",)
    evaluated = "teacher"

    def __init__(self, config: BackboneConfig, options: DINOv2Options, known: object = None) -> None:
        super().__init__(config, options, known)
        _check(config, options)
        distilled = options.teacher is not None
        self.global_size = options.global_size or config.img_size
        self.config, self.options = _without_drop_path(config) if distilled else config, options
        prototypes = {"dino": options.prototypes, "ibot": options.patch_prototypes or options.prototypes}
        if not (options.untied and options.ibot):
            del prototypes["ibot"]
        if options.teacher is not None:
            if isinstance(known, TeacherShapes):
                assert isinstance(config, ViTConfig)
                known = known.sizes(config)
            self.frozen, self.frozen_heads = (
                known.build()
                if isinstance(known, TeacherSizes)
                else load_teacher(options.teacher, config, options.ibot > 0)
            )
            prototypes = {name: sizes[-1] for name, sizes in _sizes(self.frozen_heads).items()}
            heads = {"prototypes": prototypes["dino"], "patch_prototypes": prototypes.get("ibot")}
            self.options = options.model_copy(update={**heads, "untied": "ibot" in prototypes})
        bottlenecks = {"dino": options.bottleneck, "ibot": options.patch_bottleneck}
        self.student = build(self.config)
        self.student_heads = nn.ModuleDict(
            {
                name: DINOHead(config.width, options.hidden, bottlenecks[name], k, options.fixed_gain)
                for name, k in prototypes.items()
            }
        )
        if isinstance(self.student, VisionTransformer) and (distilled or not options.ibot):
            self.student.mask_token.requires_grad_(False)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_heads = copy.deepcopy(self.student_heads).requires_grad_(False)
        if options.targets == "centring":
            kinds = {"dino": prototypes["dino"], "ibot": prototypes.get("ibot", prototypes["dino"])}
            self.centres = nn.ModuleDict({name: Centre(k, options.centre_momentum) for name, k in kinds.items()})
        self.train()

    @property
    def remembered(self) -> dict[str, object] | None:
        """The `TeacherSizes` of a distillation."""
        if self.options.teacher is None:
            return None
        return {"config": asdict(self.frozen.config), "heads": _sizes(self.frozen_heads)}

    @classmethod
    def recalled(cls, remembered: object, weights: Mapping[str, Tensor]) -> TeacherSizes | TeacherShapes | None:
        """Return the sizes of a frozen teacher, whose weights are among those of the training."""
        if isinstance(remembered, dict) and remembered:
            return TeacherSizes(**remembered)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items() if name.startswith("frozen")}
        return TeacherShapes(shapes) if shapes else None

    def train(self, mode: bool = True) -> DINOv2:
        """Set the mode of the student; what gives targets is always in evaluation mode."""
        super().train(mode)
        for name, child in self.named_children():
            if name.startswith(("teacher", "frozen")):
                child.eval()
        return self

    def views(self) -> dict[str, Crop]:
        """Two global views, and the local ones."""
        options = self.options
        views = {"global": Crop(2, self.global_size, options.global_scale)}
        if options.local_crops:
            views["local"] = Crop(options.local_crops, options.local_size, options.local_scale)
        return views

    def forward(self, batch: Part, moment: Moment, teach: Teach | None = None) -> dict[str, Tensor]:
        """Return the loss of a batch, its four terms, and what the alarm watches.

        Args:
            batch, moment: see `Method.forward`.
            teach: see `compare`.
        """
        whole, local = self.pixels(batch)
        masked = self.draw_masks(len(whole), moment, whole.device)
        if moment.part == 0 and self.options.targets == "centring":
            for centre in self.centres.values():
                centre.forget()  # type: ignore[operator]
        return self.compare(whole, local, masked, self.temperature(moment.step), teach)

    def pixels(self, batch: Part) -> tuple[Tensor, Tensor | None]:
        """Return the changed and normalised views: global (2B, 3, S, S), local (L * B, 3, s, s) or None."""
        options = self.options
        blurs, solarize = options.blur, (0.0, options.solarize)
        first, second = (
            self._changed(batch, "global", slice(view, view + 1), blurs[view], solarize[view]) for view in range(2)
        )
        local = self._changed(batch, "local", slice(None), blurs[2], 0.0) if options.local_crops else None
        return torch.cat([first, second]), local

    def _changed(self, batch: Part, name: str, views: slice, blur: float, solarize: float) -> Tensor:
        options = self.options
        changes = Photometric(
            jitter=options.jitter, grey=options.grey, blur=blur, sigma=options.sigma, solarize=solarize
        )
        pixels = to_unit(batch[name][:, views].transpose(0, 1).flatten(0, 1))
        draws = batch[f"{name}_draws"][:, views].transpose(0, 1).flatten(0, 1)
        return normalised(photometric(pixels, draws, changes), self.config.mean, self.config.std)

    def draw_masks(self, crops: int, moment: Moment, device: torch.device) -> Masked:
        """Draw the masks of 2B global views; in distillation no patch is masked and all are compared."""
        options, grid = self.options, self.global_size // self.config.patch_size
        if not options.ibot:
            return Masked(None, torch.empty(0, dtype=torch.int64), torch.empty(0))
        if options.teacher is not None:
            places = torch.arange(crops * grid**2, device=device)
            return Masked(None, places, torch.ones_like(places, dtype=torch.float32) / grid**2)
        drawing = (options.mask_share, options.mask_ratio, moment.generator(MASKS), options.smallest_block)
        masks = draw_block_masks(crops, grid, *drawing)
        weights = np.repeat(1 / np.maximum(masks.sum(axis=1), 1), masks.sum(axis=1)).astype(np.float32)
        drawn = (masks, np.flatnonzero(masks), weights)
        return Masked(*(torch.from_numpy(part).to(device, non_blocking=True) for part in drawn))

    def temperature(self, step: int) -> float:
        """Return the teacher's temperature at a step."""
        options = self.options
        if step >= options.temperature_warmup:
            return options.teacher_temperature
        return linear(options.start_temperature, options.teacher_temperature, step / options.temperature_warmup)

    def compare(
        self, whole: Tensor, local: Tensor | None, masked: Masked, temperature: float, teach: Teach | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of views whose patches are masked for the student.

        Args:
            whole: (2B, 3, S, S), normalised.
            local: (L * B, 3, s, s), normalised, or None.
            masked: patches of the whole views.
            temperature: of the targets.
            teach: gives them in the place of `targets`; `kl` and `ibot_kl` are then what is left to learn.
        """
        options, crops = self.options, len(whole)
        targets, patch_targets = (teach or self.targets)(whole, masked, temperature)
        seen = self.student(whole) if masked.chosen is None else self.student(whole, masked=masked.chosen)
        tokens = seen.cls if local is None else torch.cat([seen.cls, self.student(local).cls])
        logits = self.student_heads["dino"](tokens).unflatten(0, (-1, crops // 2))  # (2 + L, B, K)
        heat = options.student_temperature
        both = dino_losses(logits[:2], logits[2:], targets, heat)
        losses = dict(zip(("dino_global", "dino_local"), both, strict=True))
        if patch_targets is not None:
            head = self.student_heads["ibot" if "ibot" in self.student_heads else "dino"]
            patches = head(seen.patches.flatten(0, 1)[masked.places])  # (M, K)
            losses["ibot"] = ibot_loss(patches, patch_targets, masked.weights, crops, heat)
        if teach is not None:
            losses["kl"] = (both[0] + both[1]).detach() - entropies(targets).mean()
            if patch_targets is not None:
                losses["ibot_kl"] = losses["ibot"].detach() - (entropies(patch_targets) * masked.weights).sum() / crops
        if options.koleo:
            terms, doubles = zip(*(koleo_loss(view) for view in seen.cls.chunk(2)), strict=True)
            losses |= {"koleo": sum(terms), "doubles": sum(doubles)}
        loss = losses["dino_global"] + losses["dino_local"]
        loss = loss + options.ibot * losses.get("ibot", 0.0) + options.koleo * losses.get("koleo", 0.0)
        return {"loss": loss, **losses, "features": seen.cls[: crops // 2].detach(), "teacher": targets[0]}

    @torch.no_grad()
    def targets(self, whole: Tensor, masked: Masked, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Return the targets of the whole views, unmasked: (2, B, K), and of the masked patches (M, K) or None."""
        source = "frozen" if hasattr(self, "frozen") else "teacher"
        heads: nn.ModuleDict = getattr(self, f"{source}_heads")
        tokens = getattr(self, source)(whole)
        targets = self._balanced("dino", heads["dino"](tokens.cls), temperature).unflatten(0, (2, -1))
        if not self.options.ibot:
            return targets, None
        patches, head = tokens.patches.flatten(0, 1), heads["ibot" if "ibot" in heads else "dino"]
        if self.options.targets == "centring" and self.options.centre_patches == "all":
            logits = head(patches)
            return targets, self._balanced("ibot", logits[masked.places], temperature, logits)
        return targets, self._balanced("ibot", head(patches[masked.places]), temperature)

    def _balanced(self, name: str, logits: Tensor, temperature: float, seen: Tensor | None = None) -> Tensor:
        """Return the targets of logits; a centre follows them, or others that were `seen`."""
        if self.options.targets == "sinkhorn":
            return sinkhorn_knopp(logits, temperature)
        return self.centres[name](logits, temperature, seen)

    def after_step(self, moment: Moment) -> None:
        """Move backbone and heads of the average: teacher <- m teacher + (1 - m) student, m a cosine; move centres."""
        momentum = cosine(self.options.momentum, 1.0, moment.progress)
        average(self.teacher, self.student, momentum)
        average(self.teacher_heads, self.student_heads, momentum)
        if self.options.targets == "centring":
            for centre in self.centres.values():
                centre.follow()  # type: ignore[operator]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Group by module (clipped apart), decay, learning rate and first step; only last layers begin late."""
        groups: dict[tuple[bool, float, int, str], list[Tensor]] = {}
        for name, parameter, scale in self._trained():
            clip = name.split(".")[0] if name.startswith("student.") else ".".join(name.split(".")[:2])
            decay = decays(name, parameter)
            start = self.options.freeze if ".last_layer." in name else 0
            groups.setdefault((decay, scale, start, clip), []).append(parameter)
        return [ParameterGroup(parameters, *settings) for settings, parameters in groups.items()]

    def encoders(self) -> list[Backbone]:
        """All but the frozen teacher, whose weights are given."""
        return [model for model in super().encoders() if model is not getattr(self, "frozen", None)]

    def _trained(self) -> Iterator[tuple[str, Tensor, float]]:
        """Yield name, parameter and factor of the learning rate, which decays downwards in the backbone."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                part = name.removeprefix("student.")
                scale = self.student.lr_scale(part, self.options.layer_decay) if part != name else 1.0
                yield name, parameter, scale * (self.options.patch_lr if part.startswith("embed.") else 1.0)


def _sizes(heads: nn.ModuleDict) -> dict[str, HeadSizes]:
    return {name: head.sizes for name, head in heads.items() if isinstance(head, DINOHead)}


def _without_drop_path(config: BackboneConfig) -> BackboneConfig:
    """Return an architecture in which no branch is skipped."""
    return replace(config, drop_path=0.0) if isinstance(config, ViTConfig) else config


def _check(config: BackboneConfig, options: DINOv2Options) -> None:
    """Raise UserError where model and options do not fit together."""
    if isinstance(config, ViTConfig):
        _check_tokens(config, options)
    elif options.ibot:
        raise UserError(f"options.ibot: {options.ibot} is not right: only a vit has patches to mask; give 0")
    for name in ("global_scale", "local_scale", "mask_ratio", "sigma"):
        low, high = getattr(options, name)
        if not 0 <= low <= high or (name != "sigma" and high > 1):
            raise UserError(f"options.{name}: {[low, high]} is not right: give the least and the largest, in 0..1")


def _check_tokens(config: ViTConfig, options: DINOv2Options) -> None:
    """Raise UserError where class tokens are missing, tokens see masked patches, or views are not whole patches."""
    if not config.class_token:
        raise UserError("model.class_token: False is not right: DINOv2 compares class tokens; leave it out")
    if config.stem == "conv" and options.ibot:
        raise UserError(
            "model.stem: conv is not right: tokens beside a masked patch would have seen it; give options.ibot 0"
        )
    sides = {"local_size": options.local_size if options.local_crops else 0, "global_size": options.global_size or 0}
    for name, side in sides.items():
        if side % config.patch_size:
            raise UserError(
                f"options.{name}: {side} is not right: it must be a multiple of model.patch_size, {config.patch_size}"
            )
