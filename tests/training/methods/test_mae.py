"""MAE against a slow reference and transformers, every trap of the method as a fact, and a training that goes on."""

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
from pydantic import ValidationError
from slow_masked import slow_mae
from torch import Tensor

from granary.curation.errors import UserError
from granary.training.losses.reconstruction import patchify, squared_error, standardised
from granary.training.method import Moment
from granary.training.methods.mae import MAE, MAEOptions
from granary.training.models.vit_config import ViTConfig
from granary.training.models.weights import our_name

CONFIG = ViTConfig(img_size=16, patch_size=4, width=24, depth=2, heads=2, **MAE.MODEL)  # type: ignore[arg-type]
OPTIONS: dict[str, Any] = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 4}
NOW = Moment(3, 10, 0)


def method(config: ViTConfig = CONFIG, **changes: Any) -> MAE:
    torch.manual_seed(0)
    built: MAE = disturbed(MAE(config, MAEOptions(**{**OPTIONS, **changes})))
    return built


def inputs(count: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    hidden = torch.stack([torch.randperm(16) < 12 for _ in range(count)])
    return torch.randn(count, 3, 16, 16).double(), hidden


def loss_of(mae: MAE, pixels: Tensor, masked: Tensor) -> Tensor:
    return squared_error(mae.predict(pixels, masked)[0], standardised(patchify(pixels, 4)), masked)


@pytest.mark.parametrize("changes", [{}, {"class_token": False}], ids=["class token", "none"])
@pytest.mark.parametrize("standardise", [True, False])
def test_loss_and_gradients_equal_the_slow_reference(changes: dict[str, Any], standardise: bool) -> None:
    config = ViTConfig(**{**vars(CONFIG), **changes})
    fast = method(config, standardise=standardise)
    slow, batch = copy.deepcopy(fast), batch_of(2)
    fast.pixels = lambda part: MAE.pixels(fast, part).double()  # type: ignore[method-assign]
    loss = fast(batch, NOW)["loss"]
    reference = slow_mae(slow, fast.pixels(batch), fast.masks(batch, NOW))
    torch.testing.assert_close(loss, reference, atol=1e-7, rtol=1e-7)
    loss.backward()
    reference.backward()
    compare_gradients(fast, slow)


def test_loss_and_gradients_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    ours, (pixels, masked) = method().float(), inputs()
    settings = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    settings |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6, "norm_pix_loss": True, "mask_ratio": 0.75}
    decoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {f"decoder_{name}": value for name, value in decoder.items()}
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**settings))
    names = {name: in_ours(name) for name, _ in theirs.named_parameters()}
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(part(dict(ours.named_parameters()), names[name], parameter))
    pixels = pixels.float()
    output = theirs(pixels, noise=masked.float())
    loss = loss_of(ours, pixels, masked)
    torch.testing.assert_close(ours.predict(pixels, masked)[0], output.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    output.loss.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    compared = 0
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            expected = part(gradients, names[name], parameter)
            torch.testing.assert_close(
                expected, parameter.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
            compared += 1
    assert compared == len(list(theirs.parameters())) - 2  # all but the fixed positions


def in_ours(theirs: str) -> str:
    """Return our name of a weight of transformers, `/i` for a part of a joined one."""
    if theirs.startswith("vit."):
        return f"encoder.{our_name(theirs.removeprefix('vit.'))}"
    name = theirs.removeprefix("decoder.").replace("decoder_layers", "layers")
    ends = {"decoder_embed": "embed", "decoder_norm": "norm", "decoder_pred": "out"}
    ends |= {"mask_token": "mask_token", "decoder_pos_embed": "positions"}
    first, _, rest = name.partition(".")
    return f"decoder.{ends[first]}.{rest}".rstrip(".") if first in ends else f"decoder.{our_name(name)}"


def part(ours: dict[str, Tensor], name: str, theirs: Tensor) -> Tensor:
    """Return our tensor in the shape of theirs: positions with a zero for the class token, query, key, value apart."""
    name, _, number = name.partition("/")
    if name.endswith("positions"):
        return torch.cat([torch.zeros(1, 1, theirs.shape[2]), ours[name]], dim=1)
    return (ours[name].chunk(3)[int(number)] if number else ours[name]).reshape(theirs.shape)


# -- the traps of the method sheet -----------------------------------------------------------------------------------


def test_what_is_painted_on_visible_patches_does_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    mae, batch = method().float(), batch_of()
    loss, masked, predict = mae(batch, NOW)["loss"], mae.masks(batch, NOW), mae.predict

    def painted(pixels: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        said, features = predict(pixels, hidden)
        return torch.where(hidden[..., None], said, 7.0), features

    monkeypatch.setattr(mae, "predict", painted)
    assert torch.equal(mae(batch, NOW)["loss"], loss)
    monkeypatch.setattr(mae, "masks", lambda *_: masked.roll(1, dims=1))
    assert mae(batch, NOW)["loss"] != loss


def test_masked_pixels_are_never_seen_and_visible_ones_are() -> None:
    mae, (pixels, masked) = method(), inputs()
    painted, _ = mae.predict(pixels, masked)
    hidden = masked.reshape(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(mae.predict(torch.where(hidden, 9.0, pixels), masked)[0], painted, atol=0, rtol=0)
    assert not torch.isclose(mae.predict(torch.where(hidden, pixels, 9.0), masked)[0], painted).any()


def test_tokens_stand_at_their_true_positions_in_the_decoder() -> None:
    """With an embedding that gives number n for visible patch n, what the blocks see is n or the mask token there."""
    mae, (_, masked) = method(), inputs()
    places = torch.stack([(~row).nonzero()[:, 0].flip(0) for row in masked])  # in any order
    with torch.no_grad():
        mae.decoder.embed.weight.fill_(0)
        mae.decoder.embed.weight[:, 0] = 1
        mae.decoder.embed.bias.fill_(0)
        mae.decoder.mask_token.fill_(-1)
    visible = torch.zeros(3, 4, 24).double()
    visible[..., 0] = places.double()
    tokens = mae.decoder.tokens(torch.full((3, 1, 24), 50.0).double(), visible, places)
    bare = tokens[:, 1:] - mae.decoder.positions
    expected = torch.where(masked, -1.0, torch.arange(16.0).expand(3, -1)).double()
    torch.testing.assert_close(bare, expected[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(tokens[:, 0], torch.full((3, 16), 50.0).double())  # the class token has no position


def test_the_order_of_visible_patches_does_not_matter() -> None:
    mae, (pixels, masked) = method(), inputs()
    places = torch.stack([(~row).nonzero()[:, 0] for row in masked])
    painted = []
    for order in (torch.arange(4), torch.tensor([2, 0, 3, 1])):
        tokens = mae.encoder(pixels, keep=places[:, order])
        painted.append(mae.decoder(tokens.cls[:, None], tokens.patches, places[:, order]))
    torch.testing.assert_close(*painted)


@pytest.mark.parametrize(("class_token", "count"), [(True, 17), (False, 16)])
def test_the_model_to_use_sees_the_whole_picture(class_token: bool, count: int) -> None:
    mae = method(ViTConfig(**{**vars(CONFIG), "class_token": class_token})).eval()
    model = mae.evaluated_model()
    assert model is mae.encoder
    pixels, _ = inputs(1)
    assert model.tokens(pixels).shape == (1, count, 24)
    other = pixels.clone()
    for number in range(16):
        row, column = divmod(number, 4)
        other[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        assert not torch.allclose(model(other).cls, model(pixels).cls)
        other = pixels.clone()


def test_the_mask_of_a_picture_hangs_on_nothing_but_its_id_and_the_step() -> None:
    masks_hang_on_nothing_but_the_id_and_the_step(method())


def test_what_is_reconstructed_is_exact_where_nothing_was_hidden_and_where_the_decoder_is_right() -> None:
    mae, (pixels, masked) = method(), inputs()
    patches = patchify(mae.reconstruct(pixels, masked), 4)
    torch.testing.assert_close(patches[~masked], patchify(pixels, 4)[~masked], atol=0, rtol=0)
    assert not torch.isclose(patches[masked], patchify(pixels, 4)[masked]).all(dim=1).any()
    mae.predict = lambda *_: (standardised(patchify(pixels, 4)), None)  # type: ignore[method-assign, assignment, return-value]
    torch.testing.assert_close(mae.reconstruct(pixels, masked), pixels)


def test_gradients_reach_every_weight_that_is_trained_and_positions_stay() -> None:
    mae = method().float()
    mae(batch_of(), NOW)["loss"].backward()
    without = {name for name, p in mae.named_parameters() if p.grad is None}
    assert without == {"encoder.registers", "encoder.positions", "decoder.positions"}
    assert all(p.grad is None or p.grad.abs().sum() > 0 for p in mae.parameters())


def test_initial_weights_are_xaviers() -> None:
    mae = MAE(ViTConfig(img_size=16, patch_size=4, width=128, depth=1, heads=2, **MAE.MODEL), MAEOptions())  # type: ignore[arg-type]
    weights = {"encoder.embed": (48, 128), "encoder.blocks.0.attention.qkv": (128, 384), "decoder.out": (512, 48)}
    for name, (fan_in, fan_out) in weights.items():
        weight = mae.get_parameter(f"{name}.weight")
        limit = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.98 * limit < weight.abs().max() <= limit, name
        assert mae.get_parameter(f"{name}.bias").abs().max() == 0


@pytest.mark.parametrize(
    ("config", "options", "sentence"),
    [
        ({"stem": "conv"}, {}, "model.stem: conv is not right: its tokens would have seen the patches"),
        ({"mask_token": True}, {}, "model.mask_token: True is not right"),
        ({}, {"mask_ratio": 0.99}, "options.mask_ratio: 0.99 is not right: it masks 16 of 16 patches"),
    ],
)
def test_what_does_not_fit_is_said(config: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        method(ViTConfig(**{**vars(CONFIG), **config}), **options)


def test_a_decoder_whose_heads_do_not_divide_its_width_is_refused() -> None:
    with pytest.raises(
        ValidationError, match="decoder_width is 24; it must be a multiple of 4 and of decoder_heads, 16"
    ):
        MAEOptions(decoder_width=24)


def test_half_precision_gives_nearly_the_loss() -> None:
    mae, batch = method().float(), batch_of()
    whole = mae(batch, NOW)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = mae(batch, NOW)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    goes_on("mae", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_what_one_does(strategy: str, tmp_path: Path) -> None:
    two_processes_train_what_one_does("mae", strategy, tmp_path)
