"""LLaVA and BLIP of transformers, from their configurations: probabilities and answers are those of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import measure
from PIL import Image
from tiny_clip import rectangles, scene_rows, tiny_clip, tokenizer, write_pairs
from tiny_generators import write_blip, write_llava
from tiny_shards import encoded, shapes, write_shards
from torch import Tensor
from transformers import (
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    LlavaForConditionalGeneration,
)

from granary.curation.errors import UserError
from granary.curation.images.decode import DecodeError
from granary.training.evaluation.generators import load_generator
from granary.training.evaluation.pairs import load_image_text_model
from granary.training.evaluation.protocols import binary_choice, retrieval

TEXTS = ["a red block", "the blue rectangle is on the left", "a picture of a green block"]
QUESTION = "is there a red block"
PICTURES = [rectangles(("red", "blue"), 0), rectangles(("green", "white", "red"), 1), rectangles(("cyan", "red"), 2)]


def pixels_of(folder: str, image: Image.Image) -> Tensor:
    kind = BlipImageProcessorPil if "blip" in folder else CLIPImageProcessorPil
    pixels: Tensor = kind.from_pretrained(folder)([image], return_tensors="pt")["pixel_values"]
    return pixels


def slow_llava(folder: str, image: Image.Image, prompt: str, text: str) -> float:
    """Their own forward pass on ids in which the image token stands once for each vector."""
    words, model = tokenizer(), LlavaForConditionalGeneration.from_pretrained(folder)
    plain = lambda piece: words(piece, add_special_tokens=False)["input_ids"]  # noqa: E731
    before, after = prompt.split("<image>")
    ids = [0, *plain(before), *[model.config.image_token_id] * 16, *plain(after)]
    answer = [*plain(text), 1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*ids, *answer]]), pixel_values=pixels_of(folder, image)).logits[0]
    logs = logits.log_softmax(dim=1)
    return sum(float(logs[len(ids) + n - 1, token]) for n, token in enumerate(answer))


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if "
        "c['type'] == 'image' else 'we see ' + c['text'] }}{% endfor %}{% endfor %} there is",
    ],
)
def test_llava_says_what_transformers_says(template: str | None, tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "llava", template)
    generator = load_generator(f"hf:{folder}", "cpu")
    pixels = generator.prepared([lambda image=image: image for image in PICTURES])  # type: ignore[misc]
    pictures = torch.stack(pixels)  # type: ignore[arg-type]
    torch.testing.assert_close(pictures[:1], pixels_of(folder, PICTURES[0]))
    prompt = "USER: <image>\n{} ASSISTANT:" if template is None else "<image>we see {} there is"
    found = generator.loglikelihood(pictures, TEXTS, QUESTION)
    for n, image in enumerate(PICTURES):
        for t, text in enumerate(TEXTS):
            expected = slow_llava(folder, image, prompt.format(QUESTION), text)
            assert float(found[n, t]) == pytest.approx(expected, rel=1e-4)
    model, words = LlavaForConditionalGeneration.from_pretrained(folder), tokenizer()
    plain = lambda piece: words(piece, add_special_tokens=False)["input_ids"]  # noqa: E731
    before, after = prompt.format(QUESTION).split("<image>")
    ids = torch.tensor([[0, *plain(before), *[model.config.image_token_id] * 16, *plain(after)]])
    answers = generator.answer(pictures, [QUESTION] * 3, 6)
    for image, answer in zip(PICTURES, answers, strict=True):
        said = model.generate(
            input_ids=ids, pixel_values=pixels_of(folder, image), do_sample=False, max_new_tokens=6, eos_token_id=1,
            pad_token_id=2,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        said = said[: said.index(1)] if 1 in said else said
        assert words.decode(said, skip_special_tokens=True).split() == answer.split()
    assert len(set(answers)) > 1


def test_blip_says_what_transformers_says(tmp_path: Path) -> None:
    folder = write_blip(tmp_path / "blip")
    generator, model, words = (
        load_generator(f"hf:{folder}", "cpu"),
        BlipForConditionalGeneration.from_pretrained(folder),
        tokenizer(),
    )
    pixels = generator.prepared([lambda image=image: image for image in PICTURES])  # type: ignore[misc]
    pictures = torch.stack(pixels)  # type: ignore[arg-type]
    plain = lambda piece: words(piece, add_special_tokens=False)["input_ids"]  # noqa: E731
    found = generator.loglikelihood(pictures, TEXTS)
    for n, image in enumerate(PICTURES):
        for t, text in enumerate(TEXTS):
            ids = [0, *plain(text), 1]
            with torch.no_grad():
                logs = model(pixels_of(folder, image), torch.tensor([ids])).logits[0].log_softmax(dim=1)
            expected = sum(float(logs[at, token]) for at, token in enumerate(ids[1:]))
            assert float(found[n, t]) == pytest.approx(expected, rel=1e-4)
    described = generator.describe(pictures, 6)
    for image, text in zip(PICTURES, described, strict=True):
        said = model.generate(pixels_of(folder, image), do_sample=False, max_new_tokens=6)[0, 1:].tolist()
        said = said[: said.index(1)] if 1 in said else said
        assert words.decode(said, skip_special_tokens=True).split() == text.split()
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    (answer,) = generator.answer(pictures[:1], ["a picture of"], 4)
    ids = torch.tensor([[0, *plain("a picture of"), 1]])
    said = model.generate(pixels_of(folder, PICTURES[0]), ids, do_sample=False, max_new_tokens=4)[0, ids.shape[1] - 1 :]
    assert words.decode(said.tolist(), skip_special_tokens=True).split() == answer.split()


@pytest.mark.parametrize("kind", ["llava", "blip"])
def test_protocols_of_pairs_take_them_unchanged(kind: str, tmp_path: Path) -> None:
    name = "hf:" + (write_llava(tmp_path / kind) if kind == "llava" else write_blip(tmp_path / kind))
    rows = [{**row, "captions": TEXTS[n % 3 : n % 3 + 1]} for n, row in enumerate(shapes(6))]
    run = str(write_shards(tmp_path / "run", rows, shards=1))
    assert measure(retrieval, name, run, device="cpu")["pictures"] == 6
    assert measure(binary_choice, name, write_pairs(tmp_path, scene_rows(3)), device="cpu")["questions"] == 6
    model = load_image_text_model(name, "cpu", scorer="mean_likelihood")
    good, bad = model.pictures([rows[0]["image"]["bytes"], b"nothing"])
    assert isinstance(good, Tensor)
    assert good.shape == (3, 32, 32)
    assert isinstance(bad, DecodeError)


def test_weights_are_never_unpickled_and_other_models_are_sentences(tmp_path: Path) -> None:
    folder = Path(write_blip(tmp_path / "blip"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"hf:.*blip cannot be loaded .*; a generator needs safetensors weights"):
        load_generator(f"hf:{folder}", "cpu")
    tiny_clip(width=16, layers=(1, 1)).save(str(tmp_path / "clip"))
    with pytest.raises(UserError, match=r"says no texts about a picture; give a training of a generative method"):
        load_generator(f"hf:{tmp_path / 'clip'}", "cpu")
    with pytest.raises(UserError, match="model: "):
        load_generator(f"hf:{tmp_path / 'nothing'}", "cpu")


def test_a_picture_is_prepared_as_its_file_is(tmp_path: Path) -> None:
    generator = load_generator(f"hf:{write_llava(tmp_path / 'llava')}", "cpu")
    wide = PICTURES[0].crop((0, 5, 32, 27))
    (one,) = generator.pictures([encoded(wide, "PNG")])
    (other,) = generator.prepared([lambda: wide])
    assert isinstance(one, Tensor)
    assert other is not None
    assert np.array_equal(one.numpy(), other.numpy())
