"""A tiny CLIP, a word-level tokenizer, pictures of coloured rectangles with captions, and shards of `pairs`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from granary.curation.dense.schema import pair_features
from granary.curation.store.schema import arrow_schema
from granary.training.models.clip_transformers import ClipModel

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 70, 230),
    "yellow": (240, 220, 50),
    "purple": (150, 60, 190),
    "orange": (250, 140, 30),
    "cyan": (60, 210, 220),
    "white": (240, 240, 240),
}
WORDS = (
    *("a", "an", "the", "of", "is", "and", "on", "at", "with", "left", "right", "above", "below", "middle", "block"),
    *("rectangle", "picture", "photo", "shows", "there", "we", "see", "next", "to", "side", "in", "between", "one"),
    *COLOURS,
)
START, END, PAD, UNKNOWN = 0, 1, 2, 3


def tokenizer(context: int = 32) -> PreTrainedTokenizerFast:
    """Words are tokens; a text is <s> words </s>."""
    special = ("<s>", "</s>", "<pad>", "<unk>")
    vocabulary = {word: number for number, word in enumerate((*special, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=context,
    )


def tiny_clip(seed: int = 0, context: int = 32, width: int = 64, layers: tuple[int, int] = (4, 2)) -> ClipModel:
    """Return a CLIP with random weights: ViT of 4 blocks on 32 x 32 pictures, text encoder of 2."""
    shared: dict[str, Any] = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    text = {
        **shared,
        "vocab_size": len(WORDS) + 4,
        "max_position_embeddings": context,
        "num_hidden_layers": layers[1],
        "num_attention_heads": 4,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    vision = {**shared, "num_hidden_layers": layers[0], "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=width)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return ClipModel(CLIPModel(config).eval(), tokenizer(context), processor, "tiny")


def rectangles(colours: Sequence[str], seed: int, side: int = 32) -> Image.Image:
    """Draw two or three rectangles from left to right on grey; the seed moves and sizes them a little."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), (110, 110, 110))
    step = side / len(colours)
    for at, colour in enumerate(colours):
        left, right = at * step + random.uniform(0, 0.15) * step, (at + 1) * step - random.uniform(0, 0.15) * step
        top, bottom = random.uniform(0.05, 0.3) * side, random.uniform(0.7, 0.95) * side
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=COLOURS[colour])
    return image


TEMPLATES = (
    ("a {0} block left of a {1} block", "a {0} block left of a {1} block and a {2} block on the right"),
    ("there is a {0} rectangle on the left and a {1} rectangle on the right",
     "there is a {0} rectangle on the left and a {1} rectangle in the middle and a {2} rectangle on the right"),
    ("a picture of a {0} block next to a {1} block", "a picture of a {0} block and a {1} block and a {2} block"),
    ("we see {0} on the left side and {1} on the right side", "we see {0} and {1} in the middle and {2}"),
    ("the picture shows {0} and {1}", "the picture shows {0} and {1} and {2}"),
    ("on the left {0} and on the right {1}", "on the left {0} and in the middle {1} and on the right {2}"),
)  # fmt: skip


def caption(colours: Sequence[str], template: int = 0) -> str:
    return TEMPLATES[template][len(colours) - 2].format(*colours)


def scene(number: int, seed: int = 0) -> tuple[tuple[str, ...], Image.Image]:
    """Return the colours, all different, and the picture of a scene with two or three rectangles.

    Numbers 0 to 83 of a seed have 84 different sets of colours, all that there are; then they come again, in another
    order.
    """
    sets = [chosen for size in (2, 3) for chosen in itertools.combinations(COLOURS, size)]
    chosen = sets[np.random.default_rng(seed).permutation(len(sets))[number % len(sets)]]
    random = np.random.default_rng([seed, number])
    colours = tuple(str(colour) for colour in random.permutation(chosen))
    return colours, rectangles(colours, int(random.integers(2**31)))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def scene_rows(count: int, seed: int = 0, split: str = "train", start: int = 0) -> list[dict[str, Any]]:
    """Return rows of `pairs`: six captions of a scene, and as negative the caption with two colours swapped."""
    rows = []
    for number in range(start, start + count):
        colours, image = scene(number, seed)
        swapped = (colours[1], colours[0], *colours[2:])
        negatives = [("swaps", caption(swapped, template)) for template in range(2)]
        captions = [caption(colours, template) for template in range(len(TEMPLATES))]
        rows.append(row(f"{split}-{number:04d}", image, captions, negatives, split=split))
    return rows


def row(
    name: str,
    image: Image.Image | bytes,
    captions: Iterable[str],
    negatives: Iterable[tuple[str, str] | tuple[str, str, float]] = (),
    **changes: Any,
) -> dict[str, Any]:
    """Return a row of `pairs`; what is not given is empty."""
    data = image if isinstance(image, bytes) else png(image)
    return {
        "id": name,
        "image": {"bytes": data, "path": f"{name}.png"},
        "image_id": name,
        "file": f"{name}.json",
        "split": "train",
        "key": "base",
        "base": True,
        "box": [0, 0, 32, 32],
        "darkened": False,
        "captions": list(captions),
        "negatives": [
            {"kind": kind, "text": text, "score": score[0] if score else None} for kind, text, *score in negatives
        ],
        **changes,
    }


def write_pairs(run: Path, rows: Sequence[Mapping[str, Any]], shards: int = 2) -> str:
    """Write rows as shards of the config `pairs` with row groups of 5; returns the run directory."""
    schema = arrow_schema(pair_features())
    folder = run / "dataset" / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for number, start in enumerate(range(0, len(rows), size)):
        full = [{name: given.get(name) for name in schema.names} for given in rows[start : start + size]]
        table = pa.Table.from_pylist(full, schema=schema)
        pq.write_table(table, folder / f"train-{number:05d}-of-{shards:05d}.parquet", row_group_size=5)
    return str(run)


def pretrain(model: ClipModel, steps: int, seed: int = 0, batch: int = 64, rate: float = 1e-3) -> list[float]:
    """Train on the CLIP loss with endless scenes; few of a batch differ in the order of colours only."""
    transformers.set_seed(seed)
    network = model.model.train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}], rate
    )
    losses = []
    for step in range(steps):
        numbers = range(step * batch, (step + 1) * batch)
        scenes = [scene(number, seed + 1) for number in numbers]
        images = [image for _, image in scenes]
        texts = [
            caption(colours, number % len(TEMPLATES)) for number, (colours, _) in zip(numbers, scenes, strict=True)
        ]
        pictures, words = model.encode_pixels(model.pixels(images)), model.encode_tokens(model.tokens(texts))
        logits = model.scaled(pictures @ words.T)
        target = torch.arange(batch)
        loss = (
            torch.nn.functional.cross_entropy(logits, target) + torch.nn.functional.cross_entropy(logits.T, target)
        ) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        network.logit_scale.data.clamp_(0, np.log(100))
        losses.append(loss.item())
    network.eval()
    return losses
