"""The mixture of a picture's tokens by a text: golden values, torch's own attention, and what each trap would break."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from granary.training.losses.contrastive import Matches, pairwise_sigmoid_loss
from granary.training.models.mixture import TextMixture


def mixture(**changes: Any) -> TextMixture:
    """Widths 10 and 6, eight dimensions, two heads; weights drawn once more so that none is a plain initial value."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"image_width": 10, "text_width": 6, "dimension": 8, "heads": 2, "temperature": 1.5}
    model = TextMixture(**{**given, **changes}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2).add_(0.1 * torch.randn_like(parameter))
    return model


def pair(pictures: int = 3, tokens: int = 5, texts: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(pictures, tokens, 10, generator=generator, dtype=torch.float64)
    return h, torch.randn(texts, 6, generator=generator, dtype=torch.float64)


def identity(temperature: float) -> TextMixture:
    model = TextMixture(2, 2, 2, 1, temperature, root=False).double()
    with torch.no_grad():
        for layer in (model.query, model.key, model.value, model.out):
            assert layer is not None
            layer.weight.copy_(torch.eye(2))
    return model


@pytest.mark.parametrize(
    ("temperature", "phi", "similarities", "loss"),
    [
        (
            1.0,
            [[[0.731059, 0.268941], [0.268941, 0.731059]], [[0.5, 0.5], [0.880797, 0.119203]]],
            [[0.938508, 0.938508], [1.0, 0.605887]],
            3.066446,
        ),
        (
            5.0,
            [[[0.549834, 0.450166], [0.450166, 0.549834]], [[0.5, 0.5], [0.598688, 0.401312]]],
            [[0.773749, 0.773749], [1.0, 0.193640]],
            5.608808,
        ),
    ],
)
def test_golden_values_of_two_pairs(temperature: float, phi: Any, similarities: Any, loss: float) -> None:
    h = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [1, -1]]], dtype=torch.float64)
    g = torch.eye(2, dtype=torch.float64)
    model = identity(temperature)
    torch.testing.assert_close(model.weights(h, g)[:, 0], torch.tensor(phi).double(), atol=1e-6, rtol=0)
    s = (F.normalize(model(h, g), dim=2) * g).sum(dim=2)
    torch.testing.assert_close(s, torch.tensor(similarities).double(), atol=1e-6, rtol=0)
    scale, bias = torch.tensor([10.0]).double().log(), torch.tensor([-10.0]).double()
    found = pairwise_sigmoid_loss(Matches(torch.tensor([1, 3]), 0, 2), lambda columns: s[:, columns], scale, bias)
    assert float(found.detach()) == pytest.approx(loss, abs=2e-6)


def test_the_loss_is_divided_by_the_pictures_not_by_the_pairs() -> None:
    ones = torch.ones(8, 8).double()
    scale, bias = torch.tensor([10.0]).double().log(), torch.tensor([-10.0]).double()
    loss = pairwise_sigmoid_loss(Matches(torch.arange(1, 9), 0, 8), lambda columns: ones[:, columns], scale, bias)
    assert float(loss) == pytest.approx(5.545177, abs=1e-6)  # 8 ln 2


@pytest.mark.parametrize("tokens", [5, 100])  # many tokens go through the fused kernel
def test_every_pair_is_torchs_own_attention(tokens: int) -> None:
    """nn.MultiheadAttention, whose widths are equal, with our weights and the query over the temperature."""
    torch.manual_seed(0)
    model = TextMixture(8, 8, 8, 2, 1.5).double()
    theirs = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    assert model.query is not None
    assert model.key is not None
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([model.query.weight / 1.5, model.key.weight, model.value.weight]))
        theirs.out_proj.weight.copy_(model.out.weight)
    h, g = torch.randn(3, tokens, 8).double(), torch.randn(4, 8).double()
    z, phi = model(h, g), model.weights(h, g)
    for i, picture in enumerate(h):
        for j, text in enumerate(g):
            right, weights = theirs(text[None, None], picture[None], picture[None], average_attn_weights=False)
            torch.testing.assert_close(z[i, j], right[0, 0], atol=1e-9, rtol=1e-9)
            torch.testing.assert_close(phi[i, :, j], weights[0, :, 0], atol=1e-9, rtol=1e-9)


def test_the_gram_form_gives_the_same_similarities() -> None:
    """<z, t> = phi (U t) and |z|^2 = phi U U' phi, where U holds the values of all heads through the output matrix."""
    model, (h, g) = mixture(), pair()
    target = F.normalize(torch.randn(4, 8).double(), dim=1)
    dense = (F.normalize(model(h, g), dim=2) * target).sum(dim=2)
    phi = model.weights(h, g).transpose(1, 2).flatten(2)  # (B, T, M K)
    values = (h @ model.value.weight.T).unflatten(2, (2, 4))  # (B, K, M, D / M)
    u = torch.stack([values[:, :, m] @ model.out.weight[:, 4 * m : 4 * m + 4].T for m in range(2)], dim=1).flatten(1, 2)
    along = torch.einsum("btx,bxd,td->bt", phi, u, target)
    length = torch.einsum("btx,bxd,byd,bty->bt", phi, u, u, phi).sqrt()
    torch.testing.assert_close(along / length, dense, atol=1e-9, rtol=0)


def test_a_caption_changes_its_own_column_alone() -> None:
    model, (h, g) = mixture(), pair()
    before, changed = model(h, g), g.clone()
    changed[2] += 1
    after = model(h, changed)
    others = [0, 1, 3]
    torch.testing.assert_close(after[:, others], before[:, others], atol=1e-12, rtol=0)
    assert ((after[:, 2] - before[:, 2]).abs().amax(dim=1) > 1e-3).all()


def test_a_picture_of_zeros_is_zero_for_every_text() -> None:
    model, (h, g) = mixture(), pair()
    assert torch.equal(model(torch.zeros_like(h), g), torch.zeros(3, 4, 8).double())
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


def test_the_weights_of_the_tokens_sum_to_one() -> None:
    model, (h, g) = mixture(), pair()
    phi = model.weights(h, g)
    assert phi.shape == (3, 2, 4, 5)
    torch.testing.assert_close(phi.sum(dim=3), torch.ones(3, 2, 4).double())
    assert phi.std() > 0.05


def test_one_token_is_the_same_for_every_text() -> None:
    model, (h, g) = mixture(), pair(tokens=1)
    z = model(h, g)
    assert torch.equal(model.weights(h, g), torch.ones(3, 2, 4, 1).double())
    torch.testing.assert_close(z, (h @ model.value.weight.T @ model.out.weight.T).expand(-1, 4, -1))


def test_a_large_temperature_is_the_uniform_mixture() -> None:
    model, even, (h, g) = mixture(temperature=1e9), mixture(mixing="uniform"), pair()
    torch.testing.assert_close(model.weights(h, g), torch.full((3, 2, 4, 5), 0.2).double(), atol=1e-6, rtol=0)
    even.load_state_dict({name: w for name, w in model.state_dict().items() if name.startswith(("value", "out"))})
    mean = h.mean(dim=1) @ model.value.weight.T @ model.out.weight.T
    for found in (model(h, g), even(h, g)):
        torch.testing.assert_close(found, mean[:, None].expand(-1, 4, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(even.weights(h, g), torch.full((3, 2, 4, 5), 0.2, dtype=torch.float64))
    assert {name for name, _ in even.named_parameters()} == {"value.weight", "out.weight"}


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_and_root_are_both_there(temperature: float) -> None:
    h, g = pair()
    for root in (True, False):
        model = mixture(temperature=temperature, root=root)
        assert model.query is not None
        assert model.key is not None
        q, k = g @ model.query.weight.T, h @ model.key.weight.T
        logits = torch.stack([torch.einsum("td,bkd->btk", q[:, s], k[:, :, s]) for s in (slice(4), slice(4, 8))], dim=1)
        expected = (logits / (temperature * (2 if root else 1))).softmax(dim=3)
        torch.testing.assert_close(model.weights(h, g), expected)


def test_the_order_of_the_tokens_does_not_matter() -> None:
    model, (h, g) = mixture(), pair()
    torch.testing.assert_close(model(h[:, [3, 0, 4, 1, 2]], g), model(h, g), atol=1e-12, rtol=0)


def test_texts_of_a_pictures_own_are_columns_of_all() -> None:
    model, (h, g) = mixture(), pair()
    own = torch.stack([g[[0, 1]], g[[3, 0]], g[[2, 2]]])
    whole, found = model(h, g), model(h, own)
    expected = torch.stack([whole[0, [0, 1]], whole[1, [3, 0]], whole[2, [2, 2]]])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_texts_in_chunks_are_all_texts() -> None:
    model, (h, g) = mixture(), pair()
    queries, memory = model.queries(g), model.memory(h)
    parts = [model.mixed(queries[:, :, columns], *memory) for columns in torch.arange(4).split(3)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(h, g), atol=1e-12, rtol=0)
