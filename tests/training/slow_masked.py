"""Masked image models as their papers state them: one picture, one patch, one number at a time."""

from __future__ import annotations

from typing import Any

import torch
from slow_ijepa import slow_block, slow_positions
from torch import Tensor


def patch_of(picture: Tensor, number: int, side: int) -> Tensor:
    """Return the pixels (3, side, side) of a patch of a square picture, numbered row by row."""
    row, column = divmod(number, picture.shape[2] // side)
    return picture[:, row * side : (row + 1) * side, column * side : (column + 1) * side]


def numbers_of(patch: Tensor) -> list[Tensor]:
    """Return the numbers of a patch (3, p, p), row by row, the channels of a pixel together."""
    side = patch.shape[1]
    return [patch[channel, y, x] for y in range(side) for x in range(side) for channel in range(3)]


def slow_standardised(numbers: list[Tensor]) -> list[Tensor]:
    """Return numbers less their mean, over the root of their unbiased variance and a millionth."""
    mean = sum(numbers) / len(numbers)
    variance = sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
    return [(x - mean) / (variance + 1e-6) ** 0.5 for x in numbers]


def slow_embedded(vit: Any, picture: Tensor, number: int) -> Tensor:
    """Return the embedding of a patch, without its position."""
    patch = patch_of(picture, number, vit.config.patch_size)
    return (vit.embed.weight * patch).sum(dim=(1, 2, 3)) + vit.embed.bias


def slow_blocks(blocks: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = slow_block(block, x)
    return x


def slow_mae(mae: Any, pixels: Tensor, masked: Tensor) -> Tensor:
    """MAE's loss: the encoder sees what is not masked, the decoder all; errors of masked patches are averaged."""
    config, errors = mae.config, []
    table = slow_positions(config.width, config.grid).double()
    for picture, mask in zip(pixels, masked.tolist(), strict=True):
        visible = [number for number, hidden in enumerate(mask) if not hidden]
        tokens = [mae.encoder.cls[0, 0]] if config.class_token else []
        tokens += [slow_embedded(mae.encoder, picture, number) + table[number] for number in visible]
        seen = mae.encoder.norm(slow_blocks(mae.encoder.blocks, torch.stack(tokens)))
        own = slow_positions(mae.options.decoder_width, config.grid).double()
        first = int(config.class_token)
        x = [mae.decoder.embed(token) for token in seen[:first]]
        for number in range(len(mask)):
            token = (
                mae.decoder.mask_token[0, 0] if mask[number] else mae.decoder.embed(seen[first + visible.index(number)])
            )
            x.append(token + own[number])
        painted = mae.decoder.out(mae.decoder.norm(slow_blocks(mae.decoder.blocks, torch.stack(x))))[first:]
        for number, hidden in enumerate(mask):
            if hidden:
                truth = numbers_of(patch_of(picture, number, config.patch_size))
                truth = slow_standardised(truth) if mae.options.standardise else truth
                squares = [(guess - true) ** 2 for guess, true in zip(painted[number], truth, strict=True)]
                errors.append(sum(squares) / len(squares))
    return sum(errors) / len(errors)


def slow_tokens(vit: Any, picture: Tensor, mask: list[bool]) -> Tensor:
    """Return the patch tokens of an encoder with mask tokens in the place of masked patches, (N, D)."""
    tokens = [vit.cls[0, 0]]
    for number, hidden in enumerate(mask):
        patch = vit.mask_token[0] if hidden else slow_embedded(vit, picture, number)
        tokens.append(patch + vit.positions[0, number])
    return vit.norm(slow_blocks(vit.blocks, torch.stack(tokens)))[1:]


def slow_simmim(simmim: Any, pixels: Tensor, masked: Tensor) -> Tensor:
    """SimMIM's loss: the L1 distance of all masked numbers over their count."""
    total, count = pixels.new_zeros(()), 0
    for picture, mask in zip(pixels, masked.tolist(), strict=True):
        painted = simmim.decoder(slow_tokens(simmim.encoder, picture, mask))
        for number, hidden in enumerate(mask):
            if hidden:
                truth = torch.stack(numbers_of(patch_of(picture, number, simmim.config.patch_size)))
                total, count = total + (painted[number] - truth).abs().sum(), count + len(truth)
    return total / count


def slow_beit(beit: Any, pixels: Tensor, masked: Tensor) -> Tensor:
    """BEiT's loss: the negative log-likelihood of the word of every masked patch, the nearest centre to its pixels."""
    terms = []
    for picture, mask in zip(pixels, masked.tolist(), strict=True):
        tokens = slow_tokens(beit.encoder, picture, mask)
        for number, hidden in enumerate(mask):
            if hidden:
                truth = torch.stack(numbers_of(patch_of(picture, number, beit.config.patch_size)))
                distances = [float((truth - code).square().sum()) for code in beit.codebook]
                word = distances.index(min(distances))
                scores = beit.head(tokens[number]).exp()
                terms.append(-(scores[word] / scores.sum()).log())
    return torch.stack(terms).mean()
