"""SimMIM against a slow reference and transformers, its traps as facts, and a training that goes on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_trainings import (
    batch_of,
    compare_gradients,
    disturbed,
    goes_on,
    masks_hang_on_nothing_but_the_id_and_the_step,
    two_processes_train_what_one_does,
)
from slow_masked import slow_simmim
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.losses.reconstruction import absolute_error, patchify
from granary.training.method import Moment
from granary.training.methods.simmim import SimMIM, SimMIMOptions
from granary.training.models.vit_config import ViTConfig
from granary.training.models.weights import fill

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **SimMIM.MODEL)  # type: ignore[arg-type]
NOW = Moment(3, 10, 0)


def method(config: ViTConfig = CONFIG, **changes: Any) -> SimMIM:
    torch.manual_seed(0)
    built: SimMIM = disturbed(SimMIM(config, SimMIMOptions(**changes)))
    return built


def changed(**changes: Any) -> ViTConfig:
    return ViTConfig(**{**vars(CONFIG), **changes})


def inputs(model: SimMIM, count: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(count, 3, 16, 16).double(), model.masks(batch_of(count), NOW)


def test_loss_and_gradients_equal_the_slow_reference() -> None:
    fast, batch = method(), batch_of(2)
    slow = copy.deepcopy(fast)
    fast.pixels = lambda part: SimMIM.pixels(fast, part).double()  # type: ignore[method-assign]
    loss = fast(batch, NOW)["loss"]
    reference = slow_simmim(slow, fast.pixels(batch), fast.masks(batch, NOW))
    torch.testing.assert_close(loss, reference, atol=1e-7, rtol=1e-7)
    loss.backward()
    reference.backward()
    compare_gradients(fast, slow)


def test_loss_and_gradients_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours = method(changed(layer_scale=0.0)).float()
    settings = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    settings |= {"image_size": 16, "patch_size": 4, "encoder_stride": 4, "layer_norm_eps": 1e-6}
    theirs = transformers.ViTForMaskedImageModeling(transformers.ViTConfig(**settings))
    fill(theirs.vit, ours.encoder)
    convolution: nn.Conv2d = theirs.decoder[0]  # channels in rows of pixels, ours pixels in rows of channels
    with torch.no_grad():
        convolution.weight.copy_(by_channel(ours.decoder.weight)[..., None, None])
        convolution.bias.copy_(by_channel(ours.decoder.bias))  # type: ignore[union-attr]
    pixels, masked = inputs(ours)
    pixels = pixels.float()
    output = theirs(pixels, bool_masked_pos=masked)
    tokens = ours.encoder(pixels, masked=masked).patches
    loss = absolute_error(ours.decoder(tokens), patchify(pixels, 4), masked)
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    output.loss.backward()
    given = {name: p.grad for name, p in theirs.vit.named_parameters()}
    pairs = {
        "mask token": (ours.encoder.mask_token.grad, given["embeddings.mask_token"][0]),
        "patches": (ours.encoder.embed.weight.grad, given["embeddings.patch_embeddings.projection.weight"]),
        "positions": (ours.encoder.positions.grad, given["embeddings.position_embeddings"][:, 1:]),
        "class token": (ours.encoder.cls.grad, given["embeddings.cls_token"]),
        "decoder": (by_channel(ours.decoder.weight.grad), convolution.weight.grad[..., 0, 0]),  # type: ignore[arg-type, index]
    }
    for name, (mine, other) in pairs.items():
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def by_channel(rows: Tensor) -> Tensor:
    """Return rows (p * p * 3, ...) of ours in the order of a pixel shuffle: channel, row, column."""
    return rows.unflatten(0, (16, 3)).transpose(0, 1).flatten(0, 1)


# -- the traps of the method sheet -----------------------------------------------------------------------------------


def test_masked_pixels_are_never_seen_and_visible_ones_are() -> None:
    model = method()
    pixels, masked = inputs(model)
    hidden = masked.reshape(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    tokens = model.encoder(pixels, masked=masked).patches
    assert torch.equal(model.encoder(torch.where(hidden, 9.0, pixels), masked=masked).patches, tokens)
    assert not torch.isclose(model.encoder(torch.where(hidden, pixels, 9.0), masked=masked).patches, tokens).all()


def test_masks_are_whole_blocks_of_a_coarser_grid() -> None:
    masked = method().masks(batch_of(), NOW).reshape(6, 2, 2, 2, 2)  # picture, block row, row, block column, column
    assert torch.equal(masked.all(dim=4).all(dim=2), masked.any(dim=4).any(dim=2))
    assert (masked.sum(dim=(1, 2, 3, 4)) == 12).all()  # 3 of 4 blocks: 0.6 is rounded up


def test_the_mask_of_a_picture_hangs_on_nothing_but_its_id_and_the_step() -> None:
    masks_hang_on_nothing_but_the_id_and_the_step(method(mask_block=1))


def test_the_model_to_use_sees_the_whole_picture_with_a_class_token() -> None:
    model = method().eval()
    pixels, _ = inputs(model)
    assert model.evaluated_model() is model.encoder
    assert model.evaluated_model().tokens(pixels).shape == (3, 17, 24)  # type: ignore[operator]


def test_what_is_reconstructed_is_the_picture_where_nothing_was_hidden() -> None:
    model = method()
    pixels, masked = inputs(model)
    patches, truth = patchify(model.reconstruct(pixels, masked), 4), patchify(pixels, 4)
    assert torch.equal(patches[~masked], truth[~masked])
    painted = model.decoder(model.encoder(pixels, masked=masked).patches)
    torch.testing.assert_close(patches[masked], painted[masked])


def test_initial_branches_are_rescaled_by_depth() -> None:
    torch.manual_seed(0)
    model = SimMIM(changed(width=128, depth=4), SimMIMOptions())
    for number in range(4):
        for layer in ("attention.out", "mlp.down"):
            weight = model.encoder.get_parameter(f"blocks.{number}.{layer}.weight").detach()
            assert float(weight.std()) == pytest.approx(0.02 / (2 * (number + 1)) ** 0.5, rel=0.05)
    assert 0.01 < float(model.encoder.mask_token.detach().std()) < 0.03


@pytest.mark.parametrize(
    ("config", "options", "sentence"),
    [
        ({"stem": "conv"}, {}, "model.stem: conv is not right: its tokens would have seen the patches"),
        ({"mask_token": False}, {}, "model.mask_token: False is not right"),
        ({}, {"mask_block": 3}, "options.mask_block: 3 is not right: it must divide the 4 patches of a side"),
        ({}, {"mask_block": 4}, "options.mask_ratio: 0.6 is not right: it masks 16 of 16 patches"),
    ],
)
def test_what_does_not_fit_is_said(config: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        method(changed(**config), **options)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    goes_on("simmim", tmp_path)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    two_processes_train_what_one_does("simmim", "ddp", tmp_path)
