"""BEiT against a slow reference and transformers, its words, its traps as facts, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from masked_trainings import (
    batch_of,
    compare_gradients,
    disturbed,
    goes_on,
    masks_hang_on_nothing_but_the_id_and_the_step,
    two_processes_train_what_one_does,
)
from safetensors.torch import load_file
from slow_masked import slow_beit
from tiny_trainings import OPTIONS, tiny_recipe, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.data.augment import normalised, to_unit
from granary.training.data.crops import Crop
from granary.training.data.loader import batches
from granary.training.losses.reconstruction import patchify
from granary.training.method import Moment
from granary.training.methods import beit
from granary.training.methods.beit import CODEBOOK, BEiT, BEiTOptions
from granary.training.models.training import load_training
from granary.training.models.vit_config import ViTConfig
from granary.training.models.weights import our_name
from granary.training.run.setup import open_plan

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **BEiT.MODEL)  # type: ignore[arg-type]
NOW = Moment(3, 10, 0)


def method(config: ViTConfig = CONFIG, **changes: Any) -> BEiT:
    torch.manual_seed(0)
    words = np.random.default_rng(0).normal(size=(9, 48)).astype(np.float32)
    built: BEiT = disturbed(BEiT(config, BEiTOptions(**{"smallest_block": 2, **changes}), words))
    return built


def changed(**changes: Any) -> ViTConfig:
    return ViTConfig(**{**vars(CONFIG), **changes})


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    fast, batch = method(), batch_of(2)
    slow = copy.deepcopy(fast)
    fast.pixels = lambda part: BEiT.pixels(fast, part).double()  # type: ignore[method-assign]
    loss = fast(batch, NOW)["loss"]
    reference = slow_beit(slow, fast.pixels(batch), fast.masks(batch, NOW))
    torch.testing.assert_close(loss, reference.float(), atol=1e-6, rtol=1e-6)
    loss.backward()
    reference.backward()
    compare_gradients(fast, slow, 1e-6)  # the logits are taken in float32


def test_loss_and_gradients_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = method().float()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("qkv.bias"):
                parameter[24:48] = 0  # its keys have no bias, which moves nothing
    settings = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    settings |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6, "vocab_size": 9, "drop_path_rate": 0.0}
    settings |= {"use_mask_token": True, "use_absolute_position_embeddings": True}
    theirs = transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**settings))
    names = {name: in_ours(name) for name, _ in theirs.named_parameters()}
    weights = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(part(weights, names[name], parameter))
    pixels, masked = torch.randn(3, 3, 16, 16), ours.masks(batch_of(3), NOW)
    words = torch.randint(0, 9, (int(masked.sum()),))
    output = theirs(pixels, bool_masked_pos=masked, labels=words)
    logits = ours.head(ours.encoder(pixels, masked=masked).patches)
    torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=1e-5)
    loss = F.cross_entropy(logits[masked], words)
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    output.loss.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    for name, parameter in theirs.named_parameters():
        expected, given = part(gradients, names[name], parameter), parameter.grad
        if name.endswith("position_embeddings"):  # the class token has one of its own there
            expected, given = expected[:, 1:], given[:, 1:]
        torch.testing.assert_close(expected, given, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def in_ours(theirs: str) -> str:
    if theirs.startswith("lm_head."):
        return theirs.replace("lm_head", "head")
    name = theirs.removeprefix("beit.")
    if ".lambda_" in name:
        return f"encoder.blocks.{name.split('.')[1]}.scale{name[-1]}.scale"
    return f"encoder.{our_name(name)}"


def part(ours: dict[str, Tensor], name: str, theirs: Tensor) -> Tensor:
    """Return our tensor in the shape of theirs: positions with a zero for the class token, query, key, value apart."""
    name, _, number = name.partition("/")
    if name.endswith("positions"):
        return torch.cat([torch.zeros(1, 1, theirs.shape[2]), ours[name]], dim=1)
    return (ours[name].chunk(3)[int(number)] if number else ours[name]).reshape(theirs.shape)


# -- words -----------------------------------------------------------------------------------------------------------


def test_words_are_centres_of_the_patches_of_the_training_pictures(tmp_path: Path) -> None:
    """Every centre is the mean of the patches nearest to it, nearly: k-means has nothing left to do."""
    recipe = tiny_recipe("beit", tiny_run(tmp_path / "run"), tmp_path / "out")
    options, config = BEiTOptions.model_validate(recipe.options), recipe.config()
    assert isinstance(config, ViTConfig)
    plan = open_plan(recipe, BEiT.reads(options), 1)
    words = BEiT.learn(config, options, plan, recipe.out)
    assert words is not None
    assert words.shape == (16, 48)
    crops = {"image": Crop(1, 16, options.crop_scale)}
    parts = list(batches(plan._replace(crops=crops), range(2), workers=0))  # 12 pictures are in the first two of 8
    pixels = normalised(to_unit(torch.cat([part["image"][:, 0] for part in parts])[:12]), config.mean, config.std)
    patches = patchify(pixels, 4).flatten(0, 1).numpy()
    nearest = np.square(patches[:, None] - words[None]).sum(axis=2).argmin(axis=1)
    means = np.stack(
        [patches[nearest == word].mean(axis=0) if (nearest == word).any() else words[word] for word in range(16)]
    )
    np.testing.assert_allclose(words, means, atol=0.3)
    spread = np.square(patches - words[nearest]).sum() / np.square(patches - patches.mean(axis=0)).sum()
    assert spread < 0.2
    assert np.array_equal(BEiT.learn(config, options, plan, recipe.out), words)
    assert not np.array_equal(BEiT.learn(config, options, plan._replace(seed=1), recipe.out), words)


def test_words_stay_with_the_training_and_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = tiny_run(tmp_path / "run"), tmp_path / "out"
    words = load_file(Path(tiny_training("beit", run, out)) / "training.safetensors")["method/codebook"]
    assert torch.equal(torch.from_numpy(np.load(out / CODEBOOK)), words)
    loaded = load_training(str(out))
    assert isinstance(loaded, BEiT)
    assert torch.equal(loaded.codebook, words)
    monkeypatch.setattr(beit, "train_kmeans", None)  # a run that goes on learns nothing again
    again = load_file(Path(tiny_training("beit", run, out, steps=3)) / "training.safetensors")["method/codebook"]
    assert torch.equal(again, words)
    (out / CODEBOOK).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"codebook.npy is damaged .*; delete it, and it is learnt again"):
        tiny_training("beit", run, out, steps=4)


def test_few_patches_that_differ_give_few_words(tmp_path: Path) -> None:
    recipe = tiny_recipe("beit", tiny_run(tmp_path / "run"), tmp_path / "out", {"codes": 1000, "codebook_pictures": 8})
    options = BEiTOptions.model_validate(recipe.options)
    plan = open_plan(recipe, BEiT.reads(options), 1)
    words = BEiT.learn(recipe.config(), options, plan, recipe.out)
    assert words is not None
    assert 16 < len(words) <= 8 * 16
    assert len(np.unique(words, axis=0)) == len(words)


def test_a_model_with_initial_weights_needs_no_data() -> None:
    options = BEiTOptions(**OPTIONS["beit"])
    assert BEiT.untrained(CONFIG, options).config == CONFIG


# -- the traps of the method sheet -----------------------------------------------------------------------------------


def test_only_masked_patches_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = method().float(), batch_of()
    loss, masked, encode = model(batch, NOW)["loss"], model.masks(batch, NOW), model.encoder.forward

    def elsewhere(pixels: Tensor, masked: Tensor) -> Any:
        tokens = encode(pixels, masked=masked)
        return tokens._replace(patches=torch.where(masked[..., None], tokens.patches, 9.0))

    monkeypatch.setattr(model.encoder, "forward", elsewhere)
    assert torch.equal(model(batch, NOW)["loss"], loss)
    monkeypatch.setattr(model.encoder, "forward", lambda pixels, masked: elsewhere(pixels, ~masked))
    assert not torch.isclose(model(batch, NOW)["loss"], loss)
    assert masked.sum(dim=1).tolist() == [7] * 6  # 0.4 of 16, rounded up


def test_masked_pixels_are_never_seen() -> None:
    model = method()
    pixels, masked = torch.randn(3, 3, 16, 16).double(), model.masks(batch_of(3), NOW)
    hidden = masked.reshape(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    tokens = model.encoder(pixels, masked=masked).patches
    assert torch.equal(model.encoder(torch.where(hidden, 9.0, pixels), masked=masked).patches, tokens)


def test_the_mask_of_a_picture_hangs_on_nothing_but_its_id_and_the_step() -> None:
    masks_hang_on_nothing_but_the_id_and_the_step(method())


def test_the_loss_of_a_guess_is_that_of_a_uniform_answer() -> None:
    model = method().float()
    with torch.no_grad():
        model.head.weight.fill_(0)
        model.head.bias.fill_(0)
    assert float(model(batch_of(), NOW)["loss"].detach()) == pytest.approx(np.log(9), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "words", "sentence"),
    [
        ({"stem": "conv"}, 48, "model.stem: conv is not right: its tokens would have seen the patches"),
        ({"mask_token": False}, 48, "model.mask_token: False is not right"),
        ({}, 12, "out: its codebook.npy is of patches of another size; give another out"),
    ],
)
def test_what_does_not_fit_is_said(config: dict[str, Any], words: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        BEiT(changed(**config), BEiTOptions(), np.zeros((9, words), np.float32))


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    goes_on("beit", tmp_path)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    two_processes_train_what_one_does("beit", "ddp", tmp_path)
