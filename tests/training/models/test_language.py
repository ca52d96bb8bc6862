"""Language models that read pictures: where the picture goes, what comes next, what is loaded and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_language import TEXTS, tiny_language
from torch import Tensor, nn

from granary.curation.errors import UserError
from granary.training.data.tokenizer import train_tokenizer
from granary.training.models.generative import greedy
from granary.training.models.language import PICTURE, LanguageModel, load_language, splice


def slow_splice(words: Tensor, place: int, visual: Tensor) -> Tensor:
    return torch.cat([words[:place], visual, words[place + 1 :]])


def test_a_picture_is_spliced_where_a_word_was() -> None:
    torch.manual_seed(0)
    words, visual = torch.randn(3, 5, 2).requires_grad_(), torch.randn(3, 4, 2).requires_grad_()
    places = [0, 2, 4]
    found = splice(words, torch.tensor(places), visual)
    expected = torch.stack([slow_splice(words[n], place, visual[n]) for n, place in enumerate(places)])
    assert torch.equal(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((value * weights).sum(), (words, visual)) for value in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_language(tiny_language(tmp_path_factory.mktemp("language"))).eval()


def test_logits_are_those_of_the_words_and_the_picture_between_them(language: LanguageModel) -> None:
    """Text by text, the vectors joined by hand, and nothing padded."""
    torch.manual_seed(0)
    visual, texts = torch.randn(2, 3, 16), [[0, PICTURE, 5, 6], [0, 7, 8, PICTURE, 9, 10]]
    padded = torch.tensor([texts[0] + [0, 0], texts[1]])
    found = language(visual, padded)
    table = language.network.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    for n, text in enumerate(texts):
        place = text.index(PICTURE)
        vectors = torch.cat([table(torch.tensor(text[:place])), visual[n], table(torch.tensor(text[place + 1 :]))])
        logits = language.network(inputs_embeds=vectors[None]).logits[0]
        torch.testing.assert_close(found[n, :place], logits[:place])
        torch.testing.assert_close(found[n, place : len(text)], logits[place + 2 :])


def test_what_is_kept_of_earlier_tokens_changes_no_answer(language: LanguageModel) -> None:
    class Spoken:
        longest, end, next_logits = 90, language.tokenizer.end, staticmethod(language.forward)

    torch.manual_seed(0)
    visual, prompts = (
        5 * torch.randn(4, 3, 16),
        [[0, PICTURE, 5, 6], [0, 7, PICTURE], [0, PICTURE], [0, 1, 9, PICTURE, 2]],
    )
    with torch.no_grad():
        found = language.greedy(visual, prompts, 8)
        assert found == greedy(Spoken(), visual, prompts, 8)  # type: ignore[arg-type]
    assert len({tuple(text) for text in found}) > 1


def test_pictures_of_several_lengths_are_read_as_each_alone(language: LanguageModel) -> None:
    """Vectors beyond a picture's own, and words beyond a text's, change nothing."""
    torch.manual_seed(0)
    visual, counts = torch.randn(3, 5, 16), [5, 2, 3]
    tokens = torch.tensor([[0, PICTURE, 5, 6, 7], [0, 7, PICTURE, 8, 0], [PICTURE, 4, 9, 0, 0]])
    lengths = [5, 4, 3]
    together = language(visual, tokens, torch.tensor(counts))
    changed = visual.clone()
    changed[1, 2:] = 9.0
    torch.testing.assert_close(language(changed, tokens, torch.tensor(counts))[1, :4], together[1, :4])
    for n, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        alone = language(visual[n : n + 1, :count], tokens[n : n + 1, :length])[0]
        torch.testing.assert_close(together[n, :length], alone)


def test_one_table_becomes_two_of_equal_numbers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_language(tmp_path, tied=True)
    language, theirs = load_language(folder), AutoModelForCausalLM.from_pretrained(folder)
    tables = [w.data_ptr() for name, w in language.state_dict().items() if "embed_tokens" in name or "lm_head" in name]
    assert len(set(tables)) == 2
    tokens = torch.tensor([[0, 5, 6, 7]])
    torch.testing.assert_close(language.network(input_ids=tokens).logits, theirs(input_ids=tokens).logits)


@pytest.mark.parametrize("name", ["tiny?width=16&depth=1&heads=2", "written"])
def test_facts_build_it_again_without_any_file(name: str, tmp_path: Path) -> None:
    written = tiny_language(tmp_path / "written")
    language = load_language(written if name == "written" else name, train_tokenizer(TEXTS, 300)).eval()
    shutil.rmtree(tmp_path / "written")
    again = LanguageModel.of_facts(language.facts).eval()
    again.load_state_dict(language.state_dict())
    visual, tokens = torch.randn(1, 3, 16), torch.tensor([[0, PICTURE, 5, 6]])
    assert torch.equal(language(visual, tokens), again(visual, tokens))
    assert again.tokenizer.plain("a red circle") == language.tokenizer.plain("a red circle")


def test_a_text_comes_back_from_its_tokens(language: LanguageModel) -> None:
    words = language.tokenizer
    assert words.text(words.plain("a red circle")).strip() == "a red circle"
    assert words.end not in words.plain("a <|endoftext|> circle")
    assert len(words.plain("circle " * 100)) >= 100


def test_models_that_cannot_be_taken_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"options.language: '.*nothing' holds no causal language model"):
        load_language(str(tmp_path / "nothing"))
    folder = Path(tiny_language(tmp_path / "language"))
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(
        UserError, match=r"holds no causal language model with safetensors weights and a tokenizer.json"
    ):
        load_language(str(folder))
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")  # never unpickled, whatever it holds
    with pytest.raises(UserError, match="holds no causal language model with safetensors weights"):
        load_language(str(folder))
    with pytest.raises(UserError, match=r"options.language: tiny\?width=6 is not right"):
        load_language("tiny?width=6&heads=2", train_tokenizer(TEXTS, 300))
    with pytest.raises(UserError, match="unknown option 'size'"):
        load_language("tiny?size=6", train_tokenizer(TEXTS, 300))


def test_texts_longer_than_the_model_reads_are_a_sentence(language: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"a picture and its text are 103 tokens, the language model takes 96"):
        language(torch.randn(1, 100, 16), torch.tensor([[0, PICTURE, 5, 6]]))
