"""A step of each joint-embedding method against lightly's parts around the same backbone, views and optimiser.

    pip install --no-deps --target FOLDER lightly lightly-utils
    python -m tests.benchmarks.lightly_steps FOLDER [--threads 1] [--rounds 5] [--batch 128] [--methods simclr,byol,...]

Heads, losses, memory banks and averages of the reference are lightly's, sizes those of configs/train/NAME_tiny.yaml.
lightly imports torchvision, which these parts do not need: empty modules stand in for it. Both sides take the same
pixels in each round, one after the other; the best round of each counts, in seconds of processor time.
"""

from __future__ import annotations

import argparse
import copy
import importlib.abc
import importlib.machinery
import itertools
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from granary.pipelines.engine.recipe import load_recipe
from granary.training.method import Method, Moment
from granary.training.methods import load_method
from granary.training.recipe import TrainRecipe
from granary.training.two_views import TwoViews
from tests.benchmarks.cookbook import RECIPES
from tests.places import CONFIGS

Loss = Callable[[Tensor], Tensor]  # views (2, B, 3, S, S) -> loss
QUEUE = 4096
NOW = Moment(0, 1000, 0)


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty modules in the place of torchvision, whose classes lightly only names."""

    class Module(types.ModuleType):
        """Has every class that is asked for, empty."""

        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return a specification for torchvision and what is inside."""
        inside = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if inside else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return an empty module."""
        return self.Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing."""


def head(width: int, hidden: Sequence[int], out: int, out_norm: bool = False) -> nn.Module:
    """Return a head of lightly: hidden layers with BatchNorm and ReLU, and a last linear layer."""
    from lightly.models.modules.heads import ProjectionHead

    sizes = [width, *hidden]
    blocks = [(a, b, nn.BatchNorm1d(b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    last = nn.BatchNorm1d(out, affine=False) if out_norm else None
    return ProjectionHead([*blocks, (sizes[-1], out, last, None)])  # type: ignore[no-any-return]


class Reference(nn.Module):
    """A method by lightly around a copy of our backbone; `after` is done after the optimiser's step."""

    def __init__(self, name: str, ours: TwoViews) -> None:
        super().__init__()
        from lightly import loss
        from lightly.models.modules import NNMemoryBankModule, SwaVPrototypes

        o: Any = ours.options
        self.name, self.options, k = name, o, o.projector_width
        self.encoder = copy.deepcopy(ours.encoder)
        self.projector = head(ours.config.width, o.projector_hidden, k, name in ("simsiam", "moco_v3"))
        if name in ("byol", "simsiam", "nnclr", "moco_v3"):
            self.predictor = head(k, o.predictor_hidden, k, name == "moco_v3")
        if name in ("byol", "moco", "moco_v3"):
            pair = nn.ModuleList([self.encoder, self.projector])
            self.target = copy.deepcopy(pair).requires_grad_(False)
        if name == "nnclr":
            self.bank = NNMemoryBankModule(size=(o.queue, k))
        if name == "swav":
            self.prototypes = SwaVPrototypes(k, o.prototypes)
        temperature = getattr(o, "temperature", None)
        losses: dict[str, Callable[[], Any]] = {
            "simclr": lambda: loss.NTXentLoss(temperature),
            "moco": lambda: loss.NTXentLoss(temperature, memory_bank_size=(o.queue, k)),
            "moco_v3": lambda: loss.NTXentLoss(temperature),
            "nnclr": lambda: loss.NTXentLoss(temperature),
            "byol": loss.NegativeCosineSimilarity,
            "simsiam": loss.NegativeCosineSimilarity,
            "barlow": loss.BarlowTwinsLoss,
            "vicreg": loss.VICRegLoss,
            "swav": lambda: loss.SwaVLoss(temperature, sinkhorn_epsilon=o.epsilon),
        }
        self.loss = losses[name]()

    def forward(self, views: Tensor) -> Tensor:
        """Return the loss of two views (2, B, 3, S, S)."""
        first, second = (self.encoder(view).cls for view in views)
        z = self.projector(first), self.projector(second)
        if self.name == "moco":
            return self._compare(z[0], self._keys(views[1]))
        if self.name in ("byol", "moco_v3"):
            keys = [self._keys(view) for view in views]
            return (self._compare(self.predictor(z[0]), keys[1]) + self._compare(self.predictor(z[1]), keys[0])) / 2
        if self.name == "simsiam":
            p = self.predictor(z[0]), self.predictor(z[1])
            return (self._compare(p[0], z[1].detach()) + self._compare(p[1], z[0].detach())) / 2
        if self.name == "nnclr":
            p = self.predictor(z[0]), self.predictor(z[1])
            near = self.bank(z[0].detach(), update=False), self.bank(z[1].detach(), update=True)
            return (self._compare(near[0], p[1]) + self._compare(near[1], p[0])) / 2
        if self.name == "swav":
            self.prototypes.normalize()
            logits = [self.prototypes(nn.functional.normalize(view, dim=1)) for view in z]
            return self._compare(logits, [])
        return self._compare(*z)

    def _compare(self, *answers: Any) -> Tensor:
        loss: Tensor = self.loss(*answers)
        return loss

    @torch.no_grad()
    def _keys(self, view: Tensor) -> Tensor:
        keys: Tensor = self.target[1](self.target[0](view).cls)
        return keys

    def after(self) -> None:
        """Move the target."""
        if hasattr(self, "target"):
            from lightly.models.utils import update_momentum

            update_momentum(nn.ModuleList([self.encoder, self.projector]), self.target, 0.99)


def ours(name: str) -> TwoViews:
    """Return our method as its tiny recipe makes it, without smaller crops."""
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / RECIPES[name]), ["--data", "RUN", "--out", "TRAIN"])
    kind: type[Method] = load_method(recipe.method)
    options = dict(recipe.options)
    if "local_crops" in kind.Options.model_fields:
        options["local_crops"] = 0
    method = kind(recipe.config(), kind.Options.model_validate(options), None)
    assert isinstance(method, TwoViews)
    return method


def timed(
    module: nn.Module, loss: Callable[[], Tensor], after: Callable[[], None], optimiser: torch.optim.AdamW
) -> float:
    """Return the seconds of processor time of a step."""
    start = time.process_time()
    optimiser.zero_grad(set_to_none=True)
    loss().backward()
    optimiser.step()
    after()
    return time.process_time() - start


def compare(name: str, batch: int, rounds: int) -> None:
    """Print pictures per second of both, and their ratio."""
    torch.manual_seed(0)
    method = ours(name)
    reference = Reference(name, method).train()
    side = method.views()["image"].side
    pixels = torch.randn(2, batch, 3, side, side)
    method.pixels = lambda *_: pixels  # type: ignore[method-assign]
    sides: dict[str, tuple[nn.Module, Callable[[], Tensor], Callable[[], None]]] = {
        "granary": (method, lambda: method({}, NOW)["loss"], lambda: method.after_step(NOW)),
        "lightly": (reference, lambda: reference(pixels), reference.after),
    }
    trained = {
        side: torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)
        for side, (module, _, _) in sides.items()
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds + 1):  # the first warms up
        for side, (module, loss, after) in sides.items():
            best[side] = min(best[side], timed(module, loss, after, trained[side]))
    pace = {side: batch / seconds for side, seconds in best.items()}
    print(
        f"{name}: granary {pace['granary']:.0f} pictures/s, lightly {pace['lightly']:.0f}, "
        f"ratio {pace['granary'] / pace['lightly']:.2f}",
        flush=True,
    )


def main() -> None:
    """Compare the methods."""
    methods = ["simclr", "moco", "moco_v3", "nnclr", "byol", "simsiam", "barlow", "vicreg", "swav"]
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", help="where lightly is")
    for flag, default in (("--threads", 1), ("--rounds", 5), ("--batch", 128)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=methods)
    given = parser.parse_args()
    sys.meta_path.insert(0, _Absent())
    sys.path.append(given.folder)
    torch.set_num_threads(given.threads)
    for name in given.methods:
        compare(name, given.batch, given.rounds)


if __name__ == "__main__":
    main()
