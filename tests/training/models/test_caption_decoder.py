"""The caption decoder and its pooler, against those of torch."""

from __future__ import annotations

import torch
from torch import nn

from granary.training.models.caption_decoder import AttentionalPooler, CaptionDecoder, CrossAttention

WIDTH, HEADS = 16, 4


def carried(cross: CrossAttention, theirs: nn.MultiheadAttention) -> None:
    """Put our weights into an attention of torch."""
    with torch.no_grad():
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.cat([cross.q.weight, cross.kv.weight]))
        else:
            theirs.q_proj_weight.copy_(cross.q.weight)
            theirs.k_proj_weight.copy_(cross.kv.weight[:WIDTH])
            theirs.v_proj_weight.copy_(cross.kv.weight[WIDTH:])
        theirs.in_proj_bias.copy_(torch.cat([cross.q.bias, cross.kv.bias]))
        theirs.out_proj.load_state_dict(cross.out.state_dict())


def disturbed(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def test_the_decoder_is_torchs_with_norms_first() -> None:
    torch.manual_seed(0)
    ours = CaptionDecoder(WIDTH, 2, HEADS).double()
    disturbed(ours)
    layer = nn.TransformerDecoderLayer(
        WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    theirs = nn.TransformerDecoder(layer, 2, nn.LayerNorm(WIDTH, dtype=torch.float64))
    for block, other in zip(ours.blocks, theirs.layers, strict=True):
        with torch.no_grad():
            other.self_attn.in_proj_weight.copy_(block.attention.qkv.weight)
            other.self_attn.in_proj_bias.copy_(block.attention.qkv.bias)
        carried(block.cross_attention, other.multihead_attn)
        for inner, outer in (
            (block.attention.out, other.self_attn.out_proj),
            (block.norm1, other.norm1),
            (block.cross_norm, other.norm2),
            (block.norm2, other.norm3),
            (block.mlp.up, other.linear1),
            (block.mlp.down, other.linear2),
        ):
            outer.load_state_dict(inner.state_dict())
    theirs.norm.load_state_dict(ours.norm.state_dict())
    states, picture = torch.randn(3, 5, WIDTH).double(), torch.randn(3, 7, WIDTH).double()
    table = torch.randn(11, WIDTH).double()
    inputs = [[x.clone().requires_grad_() for x in (states, picture, table)] for _ in range(2)]
    found = ours(*inputs[0])
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    expected = theirs(inputs[1][0], inputs[1][1], tgt_mask=causal) @ inputs[1][2].T
    torch.testing.assert_close(found, expected)
    for value in (found, expected):
        value.square().sum().backward()
    for one, other in zip(*inputs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(
        ours.blocks[0].cross_attention.q.weight.grad, theirs.layers[0].multihead_attn.in_proj_weight.grad[:WIDTH]
    )


def test_the_pooler_is_torchs_attention_of_learnt_queries() -> None:
    torch.manual_seed(0)
    ours = AttentionalPooler(10, 3, WIDTH, HEADS).double()
    disturbed(ours)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, kdim=10, vdim=10, batch_first=True, dtype=torch.float64)
    carried(ours.attention, theirs)
    tokens = torch.randn(4, 6, 10).double()
    expected = ours.norm(theirs(ours.queries.expand(4, -1, -1), tokens, tokens)[0])
    torch.testing.assert_close(ours(tokens), expected)
    torch.testing.assert_close(ours(tokens[:, torch.randperm(6)]), expected)  # of a set
