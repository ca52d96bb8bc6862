"""Fine-tune a CLIP of `transformers` by LoRA on the pairs of a packed run, as Urbanek et al. 2024 did.

The paper: ViT-B/32, rank 1, 2 or 4, rate 1e-3 or 1e-4, 10 epochs, batch 32 on each of 2 devices, dropout 0.2, LoRA
alpha 2, biases of the adapted layers trained too, AdamW, the checkpoint with the lowest validation loss.

OUT/adapter/ is what peft reads, OUT/model/ the merged model that `granary evaluate --model OUT` takes. A killed run
goes on after its last whole epoch and ends with the same weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import torch
import yaml
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from granary.curation.errors import UserError, needs
from granary.curation.options import Options
from granary.curation.runs.lock import LOCK, held
from granary.curation.store import storage
from granary.curation.store.sampling import priority
from granary.curation.store.trees import yaml_tree
from granary.training.data.pairs import Entry, read_entries, row_groups, shuffled_entries
from granary.training.losses import captions as dci
from granary.training.models.checkpoint import flatten, nest
from granary.training.models.clip_transformers import ClipModel
from granary.training.models.lora import Lora, adapt, learning, save_adapter, save_merged

if TYPE_CHECKING:  # in an extra
    from lightning_fabric import Fabric

T = TypeVar("T")
STATE = "training.safetensors"
PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"float32": "32-true", "bfloat16": "bf16-mixed"}
COUNTERS = ("step", "epoch", "lines", "validations", "lost", "skipped")
FREE = ("out", "epochs", "steps", "accelerator")  # fields that may change when a run is continued
COLUMNS = ("step", "epoch", "loss", "clip_loss", "negative_loss")


class FinetuneRecipe(Options, frozen=True):
    """Fine-tune a CLIP by LoRA on summaries and negatives of dense captions."""

    FORMER: ClassVar[Mapping[str, str]] = {"rate": "lr"}

    method: Literal["dci_lora"] = Field("dci_lora", description="this method")
    model: str = Field(min_length=1, description="folder saved by transformers or Hub id of a CLIP")
    data: str = Field(min_length=1, description="a run of granary pack, or its dataset; a path or URL")
    out: str = Field(min_length=1, description="the training directory to write, a path or URL")
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random choice")
    split: str | None = Field("train", description="split to train on; null: all entries")
    validation: str | None = Field("valid", description="split whose loss chooses the checkpoint; null: take the last")
    lora: Lora = Field(Lora(), description="the adapters")
    captions: dci.Captions = Field("pick1", description="first; pick1: a random one per visit; pick5: five, pooled")
    pooling: dci.Pooling = Field("mean", description="of pick5: mean, hardest, or hardest_as_published")
    negatives: str = Field("swaps", description="kind of negative: swaps, basic, layout, any")
    negative_choice: Literal["first", "random", "hardest"] = Field("first", description="which one of that kind")
    alpha: float = Field(1, ge=0, description="weight of the CLIP loss")
    beta: float = Field(1, ge=0, description="weight of the negative loss; the paper tried 0, 1 and 9")
    epochs: int = Field(10, ge=1, description="passes over the entries")
    steps: int | None = Field(None, ge=1, description="stop after so many steps, within the epochs")
    batch: int = Field(32, ge=2, description="entries in a step, on each device")
    drop_last: bool = Field(True, description="skip what fills no batch at the end of an epoch; each has another end")
    lr: float = Field(1e-3, gt=0, description="learning rate, constant")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run")
    devices: int = Field(1, ge=1, description="devices; each has a batch, and losses compare within it")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the forward pass")


@dataclass(frozen=True)
class Batch:
    """Inputs of a step.

    Args:
        pixels: (B, 3, h, w).
        tokens: of B * N captions, then of M negatives.
        rows: (M,) int64, the entries that the negatives are of.
        captions: N.
    """

    pixels: Tensor
    tokens: dict[str, Tensor]
    rows: Tensor
    captions: int


class Encoders(nn.Module):
    """Both encoders as one module, so that gradients of several devices meet."""

    def __init__(self, clip: ClipModel, network: nn.Module) -> None:
        super().__init__()
        self.clip, self.network = clip, network

    def forward(self, pixels: Tensor, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (B, D) and (T, D) unit rows."""
        return self.clip.encode_pixels(pixels), self.clip.encode_tokens(tokens)


class Finetuning:
    """The state of a fine-tuning: model, optimiser, how far it is, the best weights so far."""

    def __init__(self, recipe: FinetuneRecipe, fabric: Fabric, say: Callable[[str], None]) -> None:
        self.recipe, self.fabric, self.say = recipe, fabric, say
        self.clip = ClipModel.load(recipe.model, "cpu")
        torch.manual_seed(recipe.seed)  # adapters are drawn at random
        self.network = adapt(self.clip, recipe.lora)
        learned = learning(self.network).values()
        optimiser = torch.optim.AdamW(learned, lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.encoders, self.optimiser = fabric.setup(Encoders(self.clip, self.network), optimiser)
        self.step = self.epoch = 0
        self.lines: list[dict[str, float]] = []
        self.validations: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.lost: list[str] = []  # entries whose picture cannot be decoded
        self.skipped = 0  # entries without a caption, in an epoch

    def run_epoch(self, groups: list[tuple[str, int]]) -> None:
        """Train on every entry once, or until `steps`."""
        recipe, before, started = self.recipe, self.step, time.monotonic()
        entries = shuffled_entries(recipe.data, groups, recipe.split, recipe.seed, self.epoch)
        self.skipped = 0
        self.encoders.train()
        for batch in ahead(self.batches(entries, self.epoch, recipe.drop_last)):
            if self.finished():
                break
            self.train_step(batch)
            if self.step % 100 == 0:
                rate = (self.step - before) * recipe.batch * self.fabric.world_size / (time.monotonic() - started)
                loss = self.lines[-1]["loss"]
                self.say(
                    f"epoch {self.epoch + 1}/{recipe.epochs}, step {self.step}: loss {loss:.4f}, {rate:.1f} entries/s"
                )
        if self.step == before and not self.finished():
            size = recipe.batch * self.fabric.world_size
            raise UserError(f"batch: {size} entries are more than split {recipe.split!r} has; give a smaller batch")

    def finished(self) -> bool:
        """Say whether `steps` are done."""
        return self.recipe.steps is not None and self.step >= self.recipe.steps

    def batches(self, entries: Iterable[Entry], epoch: int, drop_last: bool) -> Iterator[Batch]:
        """Yield this device's share of every batch."""
        size, world, rank = self.recipe.batch, self.fabric.world_size, self.fabric.global_rank
        captioned = (entry for entry in entries if entry.captions or self._skip())
        while chunk := list(islice(captioned, size * world)):
            if len(chunk) < size * world and (drop_last or world > 1):
                return
            yield self.batch(chunk[rank * size : (rank + 1) * size], epoch)

    def _skip(self) -> bool:
        self.skipped += 1
        return False

    def batch(self, entries: list[Entry], epoch: int) -> Batch:
        """Decode pictures and choose texts."""
        recipe = self.recipe
        pixels = self.clip.prepared([entry.image for entry in entries])
        pairs = [(entry, picture) for entry, picture in zip(entries, pixels, strict=True) if picture is not None]
        broken = {entry.id for entry, picture in zip(entries, pixels, strict=True) if picture is None}
        self.lost = sorted(broken.union(self.lost))
        if not pairs:
            raise UserError(f"data: no picture of a whole batch can be decoded, for example that of {entries[0].id}")
        captions = [dci.choose_captions(entry, recipe.captions, recipe.seed, epoch) for entry, _ in pairs]
        choice = (recipe.negatives, recipe.negative_choice, recipe.seed, epoch)
        chosen = [dci.choose_negative(entry, *choice) if recipe.beta else None for entry, _ in pairs]
        negatives = {row: text for row, text in enumerate(chosen) if text is not None}
        texts = [*(text for texts_of_one in captions for text in texts_of_one), *negatives.values()]
        stacked = torch.stack([picture for _, picture in pairs])
        return Batch(stacked, self.clip.tokens(texts), torch.tensor([*negatives], dtype=torch.long), len(captions[0]))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return loss, clip_loss and negative_loss of a batch."""
        images, texts = self.encoders(batch.pixels, batch.tokens)
        count = len(images) * batch.captions
        logits = self.clip.scaled(images @ texts[:count].T)  # (B, B * N)
        matching = dci.pool_captions(logits, batch.captions, self.recipe.pooling)
        rows = batch.rows.to(images.device)
        negatives = self.clip.scaled((images[rows] * texts[count:]).sum(dim=1))  # (M,)
        positives = dci.pool_positives(logits, batch.captions, self.recipe.pooling)[rows]  # (M,)
        clip, negative = dci.matching_loss(matching), dci.negative_loss(positives, negatives)
        loss = self.recipe.alpha * clip + self.recipe.beta * negative
        return {"loss": loss, "clip_loss": clip, "negative_loss": negative}

    def train_step(self, batch: Batch) -> None:
        """Take one step; dropout depends on seed, step and device alone."""
        purpose = f"dropout/{self.fabric.global_rank}"
        torch.manual_seed(int(priority(self.recipe.seed, [self.step], purpose)[0] >> 1))
        losses = self.losses(batch)
        if not torch.isfinite(losses["loss"]):
            raise UserError(f"lr: the loss of step {self.step} is not finite at {self.recipe.lr}; give a smaller lr")
        self.optimiser.zero_grad()
        self.fabric.backward(losses["loss"])
        self.optimiser.step()
        values = {name: loss.item() for name, loss in losses.items()}
        self.lines.append({"step": self.step, "epoch": self.epoch, **values})
        self.step += 1

    @torch.no_grad()
    def validate(self) -> None:
        """Keep the weights when their loss on the validation split is the lowest so far; without one, always."""
        recipe = self.recipe
        if recipe.validation is None or not row_groups(recipe.data, recipe.validation):
            self.best = self._weights()
            return
        self.encoders.eval()
        total = entries = 0.0
        held_out = read_entries(recipe.data, recipe.validation)
        captioned = (entry for entry in held_out if entry.captions)
        while chunk := list(islice(captioned, recipe.batch)):
            loss = self.losses(self.batch(chunk, 0))["loss"]
            total, entries = total + float(loss) * len(chunk), entries + len(chunk)
        self.validations.append(total / max(entries, 1))
        if self.validations[-1] == min(self.validations):
            self.best = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in learning(self.network).items()}

    def save(self) -> None:
        """Write the state after an epoch; appears whole."""
        data = json.dumps({name: getattr(self, name) for name in COUNTERS}).encode()
        moments = {str(number): state for number, state in self.optimiser.state_dict()["state"].items()}
        tensors = {
            **{f"now/{name}": tensor for name, tensor in self._weights().items()},
            **{f"best/{name}": tensor for name, tensor in self.best.items()},
            **{f"optimiser/{name}": tensor.cpu() for name, tensor in flatten(moments)},
            "facts": torch.frombuffer(bytearray(data), dtype=torch.uint8),
        }
        if self.fabric.global_rank == 0:
            url = storage.join(self.recipe.out, STATE)
            storage.write_bytes(url, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def resume(self) -> None:
        """Go on where the last whole epoch ended, if there is one."""
        url = storage.join(self.recipe.out, STATE)
        if not storage.exists(url):
            return
        try:
            tensors = load(storage.read_bytes(url))
        except SafetensorError as error:
            raise UserError(f"out: {url!r} is damaged ({error}); remove it to begin again") from error
        for name, value in json.loads(tensors.pop("facts").numpy().tobytes()).items():
            setattr(self, name, value)
        tree = nest(tensors)
        self.best = dict(tree["best"])
        load_weights(self.network, tree["now"])
        state = self.optimiser.state_dict()
        state["state"] = {int(number): moments for number, moments in tree["optimiser"].items()}
        self.optimiser.load_state_dict(state)
        self.say(f"going on after epoch {self.epoch}, step {self.step}")


def finetune(recipe: FinetuneRecipe, say: Callable[[str], None] = print, steal_lock: bool = False) -> dict[str, object]:
    """Fine-tune, write adapters, merged model, losses and facts to `recipe.out`, and return the facts.

    Args:
        recipe: what to fine-tune on what.
        say: takes the lines of progress.
        steal_lock: work in `recipe.out` although another process holds it.

    Raises:
        UserError: for a model that is not a CLIP, data that are not pairs, a batch larger than the data, a loss that is
            not finite, a folder with something else or in which another process works.
    """
    with held(recipe.out, steal_lock):
        return _finetuned(recipe, say)


def _finetuned(recipe: FinetuneRecipe, say: Callable[[str], None]) -> dict[str, object]:
    groups = row_groups(recipe.data, recipe.split)
    if not groups:
        raise UserError(f"split: {recipe.split!r} is not right; no entry of {recipe.data!r} is of that split")
    fabric = fabric_of(recipe)
    state = Finetuning(recipe, fabric, say if fabric.global_rank == 0 else lambda line: None)
    prepare(recipe, write=fabric.global_rank == 0)
    fabric.barrier()
    state.resume()
    while state.epoch < recipe.epochs and not state.finished():
        state.run_epoch(groups)
        state.validate()
        if state.finished():
            break
        state.epoch += 1
        state.save()
        state.say(progress(state))
    return finish(state)


def prepare(recipe: FinetuneRecipe, write: bool) -> None:
    """Check `out` and write recipe.yaml; raises UserError where it holds something else."""
    path, plain = storage.join(recipe.out, "recipe.yaml"), recipe.model_dump(mode="json")
    if storage.exists(path):
        try:
            earlier = FinetuneRecipe.model_validate(yaml_tree(storage.read_bytes(path))).model_dump(mode="json")
            same = all(earlier[key] == value for key, value in plain.items() if key not in FREE)
        except ValueError:
            same = False
        if not same:
            raise UserError(f"out: {recipe.out!r} holds a run of another recipe; give a new folder")
    elif set(storage.names(recipe.out)) - {LOCK}:
        raise UserError(f"out: {recipe.out!r} is not empty and holds no fine-tuning; give a new folder")
    if write:
        storage.write_bytes(path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())


def fabric_of(recipe: FinetuneRecipe) -> Fabric:
    """Start the devices; raises UserError where there are not as many."""
    with needs("train"):
        from lightning_fabric import Fabric
    cuda = recipe.accelerator == "cuda" or (recipe.accelerator == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.device_count() < recipe.devices:
        raise UserError(f"devices: {recipe.devices} is not right: there are {torch.cuda.device_count()} CUDA devices")
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu", devices=recipe.devices, precision=PRECISIONS[recipe.precision]
    )
    fabric.launch()
    return fabric


def progress(state: Finetuning) -> str:
    """Return a line about the last epoch."""
    lines = [line["loss"] for line in state.lines if line["epoch"] == state.epoch - 1]
    validation = f", validation {state.validations[-1]:.4f}" if state.validations else ""
    return f"epoch {state.epoch}, step {state.step}: loss {sum(lines) / max(len(lines), 1):.4f}{validation}"


def finish(state: Finetuning) -> dict[str, object]:
    """Write the results with the best weights."""
    recipe = state.recipe
    load_weights(state.network, state.best)
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "steps": state.step,
        "chosen_by": "validation loss" if state.validations else "the last step",
        "validation_losses": state.validations,
        "learning_parameters": sum(tensor.numel() for tensor in learning(state.network).values()),
        "texts_truncated": state.clip.truncated,
        "entries_without_caption": state.skipped,
        "entries_unreadable": state.lost,
        "last": state.lines[-1] if state.lines else None,
    }
    if state.fabric.global_rank == 0:
        rows = [",".join(COLUMNS), *(",".join(f"{line[name]:.6g}" for name in COLUMNS) for line in state.lines)]
        storage.write_bytes(storage.join(recipe.out, "losses.csv"), ("\n".join(rows) + "\n").encode())
        save_adapter(state.network, storage.join(recipe.out, "adapter"))
        save_merged(state.clip, state.network, storage.join(recipe.out, "model"))
        storage.write_bytes(storage.join(recipe.out, "train.json"), (json.dumps(facts, indent=2) + "\n").encode())
        state.say(f"adapters in {recipe.out}/adapter, merged model in {recipe.out}/model ({facts['chosen_by']})")
    return facts


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set the parameters that learn."""
    with torch.no_grad():
        for name, parameter in learning(network).items():
            parameter.copy_(weights[name])


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield items, preparing the next one on a thread while one is used."""
    nothing = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, nothing)
        while (item := coming.result()) is not nothing:
            coming = pool.submit(next, items, nothing)
            yield item  # type: ignore[misc]
