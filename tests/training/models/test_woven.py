"""Pictures woven into texts against a loop, the instruction-guided tokenizer, decoding by a grammar against a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_language import TEXTS

from granary.training.data.tokenizer import train_tokenizer
from granary.training.models.constrained import say
from granary.training.models.instruction_tokenizer import InstructionTokenizer, TokenizerOptions
from granary.training.models.language import LanguageModel, load_language
from granary.training.models.woven import weave

# -- weaving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_pictures_stand_where_their_tokens_were(count: int) -> None:
    torch.manual_seed(0)
    shown = torch.zeros(4, 7, dtype=torch.bool)
    shown[0, 1] = shown[1, [0, 2, 3]] = shown[3, [1, 5]] = True  # one, three, none and two
    words, visual = torch.randn(4, 7, 5, requires_grad=True), torch.randn(6, count, 5, requires_grad=True)
    woven = weave(words, shown, visual)
    number = 0
    for text in range(4):
        vectors, last = list[torch.Tensor](), list[int]()
        for place in range(7):
            if shown[text, place]:
                vectors += list(visual[number])
                number += 1
            else:
                vectors.append(words[text, place])
            last.append(len(vectors) - 1)
        torch.testing.assert_close(woven.vectors[text, : len(vectors)], torch.stack(vectors))
        assert woven.last[text].tolist() == last
    assert woven.vectors.shape == (4, 7 + 3 * (count - 1), 5)
    gradient = torch.autograd.grad(woven.vectors[:, :3].sum(), [words, visual])
    assert set(gradient[0].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert gradient[0][2, :3].eq(1).all()


# -- the tokenizer of pictures -----------------------------------------------------------------------------------------

SMALL = TokenizerOptions(queries=3, width=16, depth=2, heads=2, every=1)


def tokenizer(**changes: Any) -> InstructionTokenizer:
    torch.manual_seed(0)
    return InstructionTokenizer(SMALL.model_copy(update=changes), vocabulary=20, width=6, out=5, longest=8).eval()


def inputs(patches: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    words = torch.randint(1, 20, (2, 4))
    return torch.randn(2, patches, 6), words, torch.tensor([[True] * 4, [True, True, False, False]])


def test_as_many_vectors_come_out_as_there_are_queries_however_many_patches() -> None:
    model = tokenizer()
    for patches in (1, 9, 30):
        assert model(*inputs(patches)).shape == (2, 3, 5)
    assert tokenizer(kind="linear")(*inputs(7)).shape == (2, 7, 5)


def test_the_instruction_decides_unless_it_is_blocked_and_padding_does_not() -> None:
    model = tokenizer()
    patches, words, known = inputs()
    out, changed = model(patches, words, known), words.clone()
    changed[:, 0] = (words[:, 0] % 18) + 1
    assert (model(patches, changed, known) - out).abs().amax(dim=(1, 2)).min() > 1e-4
    nothing = torch.zeros_like(known)
    torch.testing.assert_close(model(patches, changed, nothing), model(patches, words, nothing))
    padded = words.clone()
    padded[1, 2:] = 7
    torch.testing.assert_close(model(patches, padded, known), out)
    assert (model(patches + 1, words, known) - out).abs().max() > 1e-4
    torch.testing.assert_close(model(patches[1:], words[1:, :2], known[1:, :2]), out[1:])


def slow_former(model: InstructionTokenizer, patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """One picture, layer by layer, from the weights alone: post-norm, queries attend to the patches, words do not."""
    weights = dict(model.former.named_parameters())
    width, heads = SMALL.width, SMALL.heads

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-12).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(x: torch.Tensor, memory: torch.Tensor, name: str) -> torch.Tensor:
        query, key, value = (
            linear(source, f"{name}.attention.{part}").view(-1, heads, width // heads).transpose(0, 1)
            for part, source in (("query", x), ("key", memory), ("value", memory))
        )
        shares = (query @ key.transpose(1, 2) / (width // heads) ** 0.5).softmax(dim=-1)
        mixed = (shares @ value).transpose(0, 1).reshape(-1, width)
        return norm(linear(mixed, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    def feed(x: torch.Tensor, name: str, kind: str) -> torch.Tensor:
        inner = torch.nn.functional.gelu(linear(x, f"{name}.intermediate{kind}.dense"))
        return norm(linear(inner, f"{name}.output{kind}.dense") + x, f"{name}.output{kind}.LayerNorm")

    places = weights["embeddings.position_embeddings.weight"][: len(words)]
    asked = weights["embeddings.word_embeddings.weight"][words] + places
    x = norm(torch.cat([model.queries, asked]), "embeddings.layernorm")
    for layer in range(SMALL.depth):
        name = f"encoder.layer.{layer}"
        x = attend(x, x, f"{name}.attention")
        queries = attend(x[: SMALL.queries], patches, f"{name}.crossattention")
        x = torch.cat([feed(queries, name, "_query"), feed(x[SMALL.queries :], name, "")])
    return model.out(x[: SMALL.queries])


def test_it_computes_what_its_weights_say_and_so_do_its_gradients() -> None:
    model = tokenizer().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    patches, words, known = inputs()
    patches = patches.double().requires_grad_()
    expected = torch.stack([slow_former(model, patches[0], words[0]), slow_former(model, patches[1], words[1, :2])])
    out = model(patches, words, known)
    torch.testing.assert_close(out, expected)
    weights = [patches, model.queries, model.former.encoder.layer[0].crossattention.attention.query.weight]
    gradients = [torch.autograd.grad(some.square().sum(), weights, retain_graph=True) for some in (out, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


# -- further tokens and decoding ---------------------------------------------------------------------------------------


def language(*names: str) -> LanguageModel:
    torch.manual_seed(0)
    return load_language("tiny?width=16&depth=2&heads=2", train_tokenizer(TEXTS, 300)).extended(names)


def test_further_tokens_are_whole_wherever_they_stand_and_come_once() -> None:
    plain, more = language(), language("<bin_0>", "<bin_1>", "<m_st>")
    assert more.vocabulary == plain.vocabulary + 3
    tokens = more.tokenizer.plain("a red<bin_1><bin_0> <m_st>circle")
    assert more.tokenizer.text(tokens).replace(" ", "") == "ared<bin_1><bin_0><m_st>circle"
    numbers = more.tokenizer.inner.get_vocab(with_added_tokens=True)
    assert [n for n in tokens if n >= plain.vocabulary] == [numbers[n] for n in ("<bin_1>", "<bin_0>", "<m_st>")]
    again = more.extended(["<bin_1>", "<m_st>"])
    assert (again.vocabulary, again.tokenizer.json) == (more.vocabulary, more.tokenizer.json)
    rebuilt = LanguageModel.of_facts(more.facts)
    assert (rebuilt.vocabulary, rebuilt.tokenizer.plain("<bin_0>")) == (more.vocabulary, [numbers["<bin_0>"]])


@pytest.mark.parametrize("some", [None, [3, 5, 7, 11, 200]])
def test_a_text_is_the_same_alone_without_cache_and_beside_a_longer_one(some: list[int] | None) -> None:
    model = language().eval()
    end = model.tokenizer.end
    allowed = None if some is None else lambda row, said: [*some, end] if len(said) > 3 else some
    vectors = torch.randn(3, 6, 16)
    before = [0, 2, 5]
    with torch.no_grad():
        said = say(model, vectors, before, 9, allowed)
        for row, first in enumerate(before):
            alone, text = vectors[row, first:], list[int]()
            for _ in range(9):
                logits = model.network(inputs_embeds=alone[None]).logits[0, -1]
                if allowed is not None:
                    closed = torch.ones_like(logits, dtype=torch.bool)
                    closed[allowed(row, text)] = False
                    logits = logits.masked_fill(closed, float("-inf"))
                token = int(logits.argmax())
                if token == end:
                    break
                text.append(token)
                alone = torch.cat([alone, model.network.get_input_embeddings().weight[token][None]])  # type: ignore[operator]
            assert said[row] == text
