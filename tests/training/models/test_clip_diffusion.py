"""VEDiT: its block is that of diffusers where rotary is off, and streams, positions and noise do what they must."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.losses.flow_matching import sigmas_of
from granary.training.models.clip_diffusion import ClipDiffusion, ClipDiffusionConfig, JointBlock

CONFIG = ClipDiffusionConfig(dimension=6, width=32, blocks=2, heads=2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module, seed: int = 5) -> nn.Module:
    """The same with weights that are nowhere zero, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def model(**changes: object) -> ClipDiffusion:
    torch.manual_seed(0)
    found = shaken(ClipDiffusion(ClipDiffusionConfig(**{**CONFIG.__dict__, **changes})))  # type: ignore[arg-type]
    assert isinstance(found, ClipDiffusion)
    return found


def inputs(length: int = 2) -> dict[str, Tensor]:
    return {
        "noisy": random(3, 2, length, 6), "time": torch.tensor([1000.0, 500, 20]),
        "observed": random(3, 4, length, 6, seed=1),
        "positions": torch.tensor([[4, 5]] * 3), "observed_positions": torch.tensor([[0, 1, 2, 3]] * 3),
    }  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
def test_a_block_is_that_of_diffusers_in_value_and_gradient(last: bool) -> None:
    attention = pytest.importorskip("diffusers.models.attention", reason="diffusers (extra sample) is not installed")
    theirs = shaken(attention.JointTransformerBlock(32, 2, 16, context_pre_only=last), seed=7)
    ours = JointBlock(CONFIG, last)
    _copy(theirs, ours)
    streams = [random(3, 8, 32).requires_grad_(), random(3, 4, 32, seed=1).requires_grad_()]
    conditions = random(3, 32, seed=2).requires_grad_()
    found = ours(*streams, conditions, None, None)
    expected = theirs(hidden_states=streams[1], encoder_hidden_states=streams[0], temb=conditions)
    if last:  # theirs gives no context back
        found, expected = found[1:], expected[1:]
    weights = [random(*one.shape, seed=9) for one in found]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    wanted = [*streams, conditions]
    gradients = torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, weights, strict=True)), wanted)
    references = torch.autograd.grad(sum((a * b).sum() for a, b in zip(expected, weights, strict=True)), wanted)
    for one, other in zip(gradients, references, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def _copy(theirs: nn.Module, ours: JointBlock) -> None:
    """Copy the weights; theirs calls the target's stream hidden, the observed one's context."""
    weights = theirs.state_dict()
    names = {
        "target": ("norm1.linear", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0", "ff"),
        "observed": (
            "norm1_context.linear", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "attn.to_add_out",
            "ff_context",
        ),
    }  # fmt: skip
    state = {}
    for stream, (modulation, qkv, out, mlp) in names.items():
        for kind in ("weight", "bias"):
            state[f"{stream}.modulation.{kind}"] = weights[f"{modulation}.{kind}"]
            state[f"{stream}.qkv.{kind}"] = torch.cat([weights[f"{name}.{kind}"] for name in qkv])
            if ours.last and stream == "observed":  # theirs has scale before shift
                scale, shift = state[f"{stream}.modulation.{kind}"].chunk(2)
                state[f"{stream}.modulation.{kind}"] = torch.cat([shift, scale])
                continue
            state[f"{stream}.out.{kind}"] = weights[f"{out}.{kind}"]
            state[f"{stream}.up.{kind}"] = weights[f"{mlp}.net.0.proj.{kind}"]
            state[f"{stream}.down.{kind}"] = weights[f"{mlp}.net.2.{kind}"]
    ours.load_state_dict(state)


def test_at_the_start_blocks_change_nothing_and_the_velocity_is_zero() -> None:
    fresh, given = ClipDiffusion(CONFIG), inputs()
    assert not fresh(**given).any()
    one, other = random(3, 8, 32), random(3, 4, 32)
    block = JointBlock(CONFIG)
    assert all(
        torch.equal(a, b) for a, b in zip(block(one, other, random(3, 32), None, None), (one, other), strict=True)
    )


def test_the_streams_hear_each_other() -> None:
    network, given = model(), inputs()
    before = network(**given)
    given["observed"] = given["observed"].clone()
    given["observed"][:, 1] += 1
    assert (network(**given) - before).abs().min() > 1e-6


def test_clips_that_change_places_with_their_positions_change_nothing() -> None:
    network, given = model(), inputs()
    before, order = network(**given), torch.tensor([2, 0, 3, 1])
    contents = {**given, "observed": given["observed"][:, order]}
    assert not torch.allclose(network(**contents), before, atol=1e-4)
    both = {**contents, "observed_positions": given["observed_positions"][:, order]}
    assert torch.allclose(network(**both), before, atol=1e-5)
    without = model(rotary=False)
    assert torch.allclose(without(**contents), without(**given), atol=1e-5)


def test_only_distances_between_clips_count() -> None:
    network, given = model(), inputs()
    moved = {**given, "positions": given["positions"] + 7, "observed_positions": given["observed_positions"] + 7}
    assert torch.allclose(network(**moved), network(**given), atol=1e-4)
    apart = {**given, "positions": given["positions"] + 7}
    assert not torch.allclose(network(**apart), network(**given), atol=1e-4)


def test_clips_that_are_not_there_are_not_seen() -> None:
    network, given = model(), inputs()
    present = torch.tensor([[True, True, False, False]] * 3)
    fewer = {**given, "observed": given["observed"][:, :2], "observed_positions": given["observed_positions"][:, :2]}
    assert torch.allclose(network(**given, present=present), network(**fewer), atol=1e-5)


def test_tokens_of_a_clip_have_places_of_their_own() -> None:
    network, given = model(), inputs(length=3)
    turned = {**given, "observed": given["observed"].flip(2)}
    assert not torch.allclose(network(**turned), network(**given), atol=1e-4)
    assert network(**given).shape == (3, 2, 3, 6)


def test_candidates_differ_with_their_noise_and_are_the_same_with_the_same() -> None:
    network, given = model(), inputs()
    known = {name: given[name] for name in ("observed", "positions", "observed_positions")}
    plans = [network.generated(random(3, 2, 2, 6, seed=seed), sigmas_of(4), **known) for seed in (0, 1, 2, 0)]
    assert torch.equal(plans[0], plans[3])
    assert min((plans[a] - plans[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3


def test_steps_that_are_run_again_backwards_have_the_same_gradient() -> None:
    network, given = model(), inputs()
    known = {name: given[name] for name in ("observed", "positions", "observed_positions")}
    gradients = []
    for recompute in (True, False):
        network.recompute = recompute
        loss = network.generated(random(3, 2, 2, 6), sigmas_of(3), **known).square().mean()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width: 36 is not a multiple"):
        ClipDiffusion(ClipDiffusionConfig(6, width=36, heads=4))


@pytest.mark.slow
def test_the_next_step_of_a_procedure_is_learnt() -> None:
    """Three orders of four orthogonal steps: the clip after two noisy ones is generated near the right step."""
    torch.manual_seed(0)
    orders = torch.tensor([[0, 1, 2], [3, 1, 0], [2, 0, 3]])
    network = ClipDiffusion(ClipDiffusionConfig(4, width=32, blocks=2, heads=2)).train()
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)

    def drawn(count: int) -> tuple[dict[str, Tensor], Tensor]:
        steps = orders[torch.randint(3, (count,), generator=generator)]
        latents = 3 * F.one_hot(steps, 4).float() + 0.3 * torch.randn(count, 3, 4, generator=generator)
        places = torch.arange(3).expand(count, 3)
        known = {"observed": latents[:, :2, None], "positions": places[:, 2:], "observed_positions": places[:, :2]}
        return known, steps[:, 2]

    for _ in range(120):
        known, label = drawn(32)
        made = network.generated(torch.randn(32, 1, 1, 4, generator=generator), sigmas_of(4), **known)
        loss = F.cross_entropy(made[:, 0, 0], label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    known, label = drawn(200)
    with torch.no_grad():
        made = network.generated(torch.randn(200, 1, 1, 4, generator=generator), sigmas_of(4), **known)
    assert (made[:, 0, 0].argmax(dim=1) == label).float().mean() > 0.95
