"""FLAVA: its losses against loops over pairs, patches and words; who is matched with whom; what sees what; its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caption_batches import batch_of
from caption_trainings import CAPTIONS, NOW, SHAPE, TOKENIZER, check_evaluated, check_half_precision
from masked_trainings import compare_gradients, disturbed
from places import CONFIGS
from same_training import SGD, VIT, check_near, check_same, one_and_two, whole_and_cut
from tiny_trainings import OPTIONS, tiny_run, tiny_training
from torch import Tensor

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.losses.next_token import IGNORED
from granary.training.methods.flava import Flava, FlavaOptions, Learnt, Paired
from granary.training.models.export import export
from granary.training.models.training import load_training
from granary.training.models.vit import ViTConfig
from granary.training.recipe import TrainRecipe

BATCH = [["a red dog"], ["two cats on a mat"], [], ["a red dog"], ["a boat"], ["the old man at sea"], ["a mat"]]
WEIGHTS = {"contrastive": 1.0, "image": 0.5, "text": 2.0, "fused": 1.5, "matching": 0.7}


def flava(**options: Any) -> Flava:
    torch.manual_seed(0)
    given = {**OPTIONS["flava"], "context": 32, "crop_scale": (1.0, 1.0), "word_ratio": 0.3, **options}
    given |= {f"{name}_weight": weight for name, weight in WEIGHTS.items()}
    codebook = np.random.default_rng(0).normal(size=(8, 48)).astype(np.float32)
    return Flava(ViTConfig(**{**SHAPE, **Flava.MODEL}), FlavaOptions(**given), Learnt(TOKENIZER, codebook))


def paired(model: Flava, batch: dict[str, Any]) -> tuple[Tensor, Paired]:
    pixels, tokens, keys = model.inputs(batch, NOW)
    return pixels.double(), model.paired(tokens, keys, batch["id"], NOW)


# -- the losses --------------------------------------------------------------------------------------------------------


def slow_losses(model: Flava, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Picture by picture, patch by patch, word by word; the nearest centre by a loop."""
    pixels, pairs = paired(model, batch)
    masks = model.masks(batch["id"], NOW)
    shown, words = model.masked_texts(pairs, batch["id"], NOW)
    terms: dict[str, list[Tensor]] = {name: [] for name in ("image", "text", "fused_image", "fused_text", "matching")}

    def surprise(logits: Tensor, right: int) -> Tensor:
        return logits.exp().sum().log() - logits[right]

    for n, label in enumerate(pairs.labels.tolist()):
        patches = model.image(pixels[n : n + 1], masked=masks[n : n + 1]).patches
        states = model.text.norm(model.text.states(shown[n : n + 1]))
        x = torch.cat([model.fusion.cls[0], model.fusion.image(patches[0]), model.fusion.text(states[0])])[None]
        for block in model.fusion.blocks:
            x = block(x)
        x = model.fusion.norm(x)[0]
        for place in range(16):
            row, column = divmod(place, 4)
            cut = pixels[n, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            distances = [float((cut - centre).square().sum()) for centre in model.codebook]
            code = distances.index(min(distances))
            if masks[n, place]:
                terms["image"].append(surprise(model.heads["image"](patches[0, place]), code))
                if label == 1:
                    terms["fused_image"].append(surprise(model.heads["fused_image"](x[1 + place]), code))
        for place, word in enumerate(words[n].tolist()):
            if word != IGNORED:
                terms["text"].append(surprise(model.heads["text"](states[0, place]), word))
                if label == 1:
                    terms["fused_text"].append(surprise(model.heads["fused_text"](x[17 + place]), word))
        if label != IGNORED:
            terms["matching"].append(surprise(model.heads["matching"](x[0]), label))
    losses = {name: sum(values) / len(values) for name, values in terms.items()}
    return {**losses, "contrastive": slow_contrastive(model, batch)}  # type: ignore[dict-item]


def slow_contrastive(model: Flava, batch: dict[str, Any]) -> Tensor:
    pixels, tokens, _ = model.inputs(batch, NOW)
    there = [n for n, own in enumerate(batch["captions"]) if own]
    u, v = (F.normalize(rows, dim=1) for rows in (model.images(pixels.double()), model.texts(tokens)))
    total = torch.zeros((), dtype=torch.float64)
    for n in there:
        rivals = [m for m in there if m == n or batch["captions"][m] != batch["captions"][n]]
        for one, other in ((u, v), (v, u)):
            logits = model.scale.exp()[0] * torch.stack([one[n] @ other[m] for m in rivals])
            total = total - logits.log_softmax(dim=0)[rivals.index(n)] / (2 * len(there))
    return total


def test_losses_and_gradients_equal_loops_over_patches_and_words() -> None:
    fast, slow = (disturbed(flava()) for _ in range(2))
    slow.load_state_dict(fast.state_dict())
    batch, inputs = batch_of(BATCH), fast.inputs
    fast.inputs = lambda *given: (inputs(*given)[0].double(), *inputs(*given)[1:])
    output, losses = fast(batch, NOW), slow_losses(slow, batch)
    assert set(paired(slow, batch)[1].labels.tolist()) == {0, 1, IGNORED}
    for name, value in losses.items():
        torch.testing.assert_close(
            output[name], value.detach(), atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    expected = sum(WEIGHTS[name.split("_")[0]] * value for name, value in losses.items())
    torch.testing.assert_close(output["loss"], expected, atol=1e-6, rtol=1e-6)
    output["loss"].backward()
    expected.backward()  # type: ignore[union-attr]
    compare_gradients(fast, slow, atol=1e-6)
    assert float(output["skipped"]) == 1


def test_half_of_the_pictures_are_shown_with_the_caption_of_another() -> None:
    model, count = flava(), 400
    batch = batch_of([[CAPTIONS[n]] for n in np.random.default_rng(0).integers(0, 5, count)])
    _, tokens, keys = model.inputs(batch, NOW)
    pairs = model.paired(tokens, keys, batch["id"], NOW)
    own = (pairs.tokens == tokens).all(dim=1)
    assert torch.equal(pairs.labels == 1, own)  # the same words of another picture are no wrong pair
    assert float((pairs.labels == 0).double().mean()) == pytest.approx(0.5 * 0.8, abs=0.07)  # a fifth has the same
    other = model.paired(tokens, keys, batch["id"], NOW._replace(step=1))
    assert not torch.equal(other.labels, pairs.labels)
    silent = model.paired(tokens, torch.zeros_like(keys), batch["id"], NOW)
    assert (silent.labels == IGNORED).all()
    assert torch.equal(silent.tokens, tokens)


def test_nothing_that_is_masked_is_seen() -> None:
    """Other pixels in masked patches, other words in masked places: the predictions are the same."""
    model = disturbed(flava())
    batch = batch_of(BATCH)
    pixels, pairs = paired(model, batch)
    masks = model.masks(batch["id"], NOW)
    changed = pixels.clone()
    hidden = masks.reshape(-1, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    changed = torch.where(hidden, torch.randn_like(changed), changed)
    torch.testing.assert_close(
        model.image(changed, masked=masks).patches, model.image(pixels, masked=masks).patches, atol=1e-12, rtol=0
    )
    assert not torch.allclose(model.image(changed).patches, model.image(pixels).patches)
    assert (masks.sum(dim=1) == model.masked_patches).all()
    shown, words = model.masked_texts(pairs, batch["id"], NOW)
    assert ((words == IGNORED) | (words == pairs.tokens)).all()
    assert (shown[words == IGNORED] == pairs.tokens[words == IGNORED]).all()
    assert ((words != IGNORED).sum(dim=1) >= 1).tolist() == [bool(own) for own in batch["captions"]]
    ends = pairs.tokens == model.tokenizer.end
    assert (words[ends] == IGNORED).all()


def test_every_weight_gets_a_gradient_and_pictures_without_captions_teach_patches_alone() -> None:
    model = flava()
    model(batch_of(BATCH), NOW)["loss"].backward()
    idle = [name for name, p in model.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum())]
    assert idle == []
    output = flava()(batch_of([[], [], []]), NOW)
    assert all(float(output[name]) == 0 for name in ("text", "fused_image", "fused_text", "matching", "contrastive"))
    assert float(output["image"]) > 0


def test_half_precision_is_summed_in_float32() -> None:
    check_half_precision(flava(), batch_of(BATCH))


def test_sizes_that_do_not_fit_are_sentences() -> None:
    with pytest.raises(UserError, match=r"options.fusion_heads: 3 must divide model.width, 16"):
        flava(fusion_heads=3)


# -- runs --------------------------------------------------------------------------------------------------------------

TREE = {"method": "flava", "model": VIT, "options": OPTIONS["flava"]}


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    check_same(*whole_and_cut(TREE, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    """Captions of other pictures come from both processes."""
    check_near(*one_and_two({**TREE, "optimiser": SGD}, tmp_path, strategy))


def test_the_recipe_has_the_published_sizes() -> None:
    recipe = load_recipe(TrainRecipe, str(CONFIGS / "train" / "flava_vitb16.yaml"), ["--data", "RUN", "--out", "TRAIN"])
    config, options = recipe.config(), FlavaOptions.model_validate(recipe.options)
    assert (config.width, config.depth, config.patch_size, config.img_size) == (768, 12, 16, 224)
    assert (recipe.batch, recipe.steps, recipe.optimiser.lr) == (8192, 150_000, 1e-3)
    assert (options.text_depth, options.fusion_depth, options.mask_ratio, options.word_ratio) == (12, 6, 0.4, 0.15)


def test_a_training_comes_back_whole_and_is_evaluated(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "run")
    tiny_training("flava", run, tmp_path / "out")
    model = load_training(str(tmp_path / "out"))
    assert isinstance(model, Flava)
    assert model.codebook.abs().sum() > 0
    check_evaluated(tmp_path / "out", run, tmp_path)
    with pytest.raises(UserError, match="export: flava has a transformer over both"):
        export(str(tmp_path / "out"), str(tmp_path / "exported"), "transformers")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_loss_of_the_cpu() -> None:
    model, batch = flava(), batch_of(BATCH)
    here = model(batch, NOW)["loss"].detach()
    there = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in batch.items()}
    torch.testing.assert_close(model.cuda()(there, NOW)["loss"].detach().cpu(), here, atol=1e-4, rtol=1e-4)
