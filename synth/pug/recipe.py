"""The recipe of a rendered dataset: factors, plan, scene, renderer and outputs, every option in one place."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from granary.curation.options import Options, RunRecipe
from granary.curation.values import Sentence
from granary.synth.pug.plan.factors import Factor
from granary.synth.pug.plan.plans import PlanOptions
from granary.synth.pug.plan.scenes import SceneOptions
from granary.synth.pug.plan.splits import Holdout
from granary.synth.pug.texts.options import Captions, Polls, Quads, Questions, Videos


class ImageOptions(Options, frozen=True):
    """The pictures."""

    width: int = Field(224, ge=16, le=8192, description="pixels")
    height: int = Field(224, ge=16, le=8192, description="pixels")


class Outputs(Options, frozen=True):
    """Which ground truth is stored; boxes always are."""

    mask: bool = Field(False, description="column `mask`: PNG, 0 background, 1 and 2 the characters")
    depth: bool = Field(
        False,
        description="columns `depth`: planar, float32 cm in a NumPy file (.npz), and `depth_view`: a PNG of it",
    )
    normals: bool = Field(False, description="column `normals`: PNG, world normal * 0.5 + 0.5")


class Settle(Options, frozen=True):
    """Guard against stale frames: after a change, capture until two successive pictures agree."""

    enabled: bool | None = Field(None, description="default: on for UnrealCV servers, off for the embedded world")
    discard: int = Field(1, ge=0, description="frames thrown away after a change")
    bound: float = Field(2.0, ge=0, le=255, description="mean absolute difference of two pictures that agree, of 255")
    attempts: int = Field(8, ge=2, description="captures of one scene at most")


class RendererOptions(Options, frozen=True):
    """Who renders. Nothing here but kind, director and settle decides what a picture shows."""

    kind: Literal["embedded", "unrealcv"] = Field("embedded", description="the embedded world, or UnrealCV servers")
    addresses: tuple[str, ...] = Field(
        (), description="unrealcv: HOST:PORT or the path of a Unix socket, comma between"
    )
    binary: str | None = Field(None, description="unrealcv: a packaged game to launch instead, on free ports")
    arguments: tuple[Sentence, ...] = Field(
        ("-RenderOffScreen", "-cvport={port}"), description="unrealcv: command line of the binary"
    )
    servers: int = Field(0, ge=0, description="servers to start at most in one process; 0: one for each worker")
    director: str = Field("Director", pattern=r"^\S+$", description="actor whose functions set texture and light")
    timeout: float = Field(60.0, gt=0, description="seconds a server may take for one scene")
    start_timeout: float = Field(120.0, gt=0, description="seconds a server may take to start or to become free")
    backoff: float = Field(0.5, ge=0, description="seconds between two reconnections; doubled each time, up to 10")
    patience: float = Field(300.0, ge=0, description="seconds to wait for a server that does not answer any more")
    retries: int = Field(3, ge=0, description="further attempts at a row before it goes to the dead letter")
    give_up: int = Field(10, ge=1, description="rows in succession that lose their connections and so stop the run")
    settle: Settle = Field(Settle(), description="guard against stale frames")


class Checks(Options, frozen=True):
    """What every frame must pass."""

    blank: float = Field(2.0, ge=0, description="least standard deviation of the grey levels, of 255")
    visible: int = Field(12, ge=0, description="least pixels of each character in the mask")
    shown: float = Field(
        2.0,
        ge=0,
        description="unrealcv: least mean difference, of 255, of a character's pixels from the view without it; 0: any",
    )
    twice: float = Field(0.01, ge=0, le=1, description="share of the rows rendered again later and compared")


class RenderShards(Options, frozen=True):
    """The Parquet files of the dataset, and how often a running one is saved."""

    rows: int = Field(1000, ge=1, description="rows in a shard, which is one work unit")
    row_group: int = Field(100, ge=1, le=1000, description="samples in a row group")
    checkpoint: int = Field(16, ge=1, description="rows rendered between two saves: what a killed run loses at most")


class RenderRecipe(RunRecipe, frozen=True):
    """Render a dataset whose factors of variation are controlled: a plan of factor values, one picture for each row."""

    name: str = Field("rendered", pattern=r"^[A-Za-z0-9._: -]+$", description="title of the dataset")
    licence: str = Field("unknown", description="licence of the pictures, as the Hub names it: cc-by-4.0, mit, other")
    out: str = Field(min_length=1, description="the run directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    factors: dict[str, Factor] = Field(min_length=1, description="factors by name; the last one runs fastest in a grid")
    plan: PlanOptions = Field(PlanOptions(), description="which combinations are rendered")
    scene: SceneOptions = Field(SceneOptions(), description="what the factors leave open")
    splits: tuple[Holdout, ...] = Field((), description="what is held out; the rest is train")
    label: str = Field("", description="column that is the label; default: character_label or character_name")
    captions: Captions = Field(Captions(), description="captions")
    questions: Questions = Field(Questions(), description="questions with their answers")
    polls: Polls = Field(Polls(), description="questions whether an object is in the picture")
    quads: Quads = Field(Quads(), description="two pictures and two captions of the same words")
    videos: Videos = Field(Videos(), description="frames of several pictures, and a question about a few of them")
    words: dict[str, Sentence] = Field({}, description="names of worlds, characters, textures, and the words for them")
    assets: dict[str, str] = Field({}, description="names the renderer does not have, and what it shows instead")
    meshes: dict[str, str] = Field({}, description="your own meshes by name: glb, gltf, obj, ply, stl or off files")
    image: ImageOptions = Field(ImageOptions(), description="size of the pictures")
    outputs: Outputs = Field(Outputs(), description="further ground truth")
    checks: Checks = Field(Checks(), description="what every frame must pass")
    renderer: RendererOptions = Field(RendererOptions(), description="who renders")
    shards: RenderShards = Field(RenderShards(), description="output files")
