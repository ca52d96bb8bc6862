"""Causal language models of `transformers` that read pictures: where a token stands for one, its vectors are put.

Weights are read from safetensors alone, and no code of a repository is run. `tiny` is a Qwen2 of random weights.
Shapes: B texts, L tokens, K vectors of a picture, W width, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn

from granary.curation.encoders.inference import UNLOADABLE, reason
from granary.curation.encoders.spec import EncoderSpec
from granary.curation.errors import UserError
from granary.training.data.tokenizer import TextTokenizer
from granary.training.models.hub_backbone import described_config, their_config
from granary.training.models.registry import read_name
from granary.training.models.vit import gather_tokens

if TYPE_CHECKING:  # takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PICTURE = -1  # the token that a picture stands in the place of
TINY = "tiny"


class LanguageTokenizer:
    """The tokenizer of a language model.

    Args:
        json: of a `tokenizers` tokenizer.
        begin: tokens that a text begins with.
        end: the token that ends an answer.
    """

    def __init__(self, json: str, begin: Sequence[int], end: int) -> None:
        self.json, self.begin, self.end = json, list(begin), end
        self.inner = Tokenizer.from_str(json)
        self.inner.no_truncation()
        self.inner.no_padding()

    def plain(self, text: str) -> list[int]:
        """Return the tokens of a text, without begin and end."""
        frame = (*self.begin, self.end)
        return [n for n in self.inner.encode(text, add_special_tokens=False).ids if n not in frame]

    def text(self, numbers: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self.inner.decode([number for number in numbers if number >= 0]))

    @classmethod
    def of_captions(cls, json: str) -> LanguageTokenizer:
        """Return a tokenizer that was trained here, see `granary.training.data.tokenizer`."""
        made = TextTokenizer(json, context=4, causal=True)
        return cls(made.json, [made.start], made.end)

    @classmethod
    def of_transformers(cls, tokenizer: PreTrainedTokenizerBase) -> LanguageTokenizer:
        """Return that of `transformers`; raises ValueError for one that is not a fast one, or has no end."""
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or tokenizer.eos_token_id is None:
            raise ValueError("its tokenizer has no tokenizer.json, or no token that ends a text")
        begin = tokenizer.bos_token_id
        return cls(backend.to_str(), [tokenizer.eos_token_id if begin is None else begin], tokenizer.eos_token_id)


class LanguageModel(nn.Module):
    """A causal language model whose texts may hold a picture.

    Args:
        network: of `transformers`.
        tokenizer: its.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: LanguageTokenizer) -> None:
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        table = self._table()
        self.vocabulary, self.width = (int(size) for size in table.shape)
        self.architecture = described_config(network.config)

    def _table(self) -> Tensor:
        embeddings: Any = self.network.get_input_embeddings()
        table: Tensor = embeddings.weight
        return table

    @property
    def facts(self) -> dict[str, object]:
        """What builds it again, without weights: JSON."""
        words = self.tokenizer
        return {
            "architecture": self.architecture, "tokenizer": words.json, "begin": words.begin, "end": words.end,
        }  # fmt: skip

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> LanguageModel:
        """Return the model that `facts` describes, with initial weights."""
        from transformers import AutoModelForCausalLM

        config = their_config(facts["architecture"])
        network = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)
        return cls(network, LanguageTokenizer(facts["tokenizer"], facts["begin"], facts["end"]))

    def extended(self, names: Sequence[str]) -> LanguageModel:
        """Return the model with further tokens, each whole wherever it stands; those that it has already stay.

        Args:
            names: of the tokens. The rows of new ones in the tables of input and output are drawn at random.
        """
        inner = Tokenizer.from_str(self.tokenizer.json)
        inner.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
        size = max(inner.get_vocab(with_added_tokens=True).values()) + 1
        if size > self.vocabulary:
            self.network.resize_token_embeddings(size, mean_resizing=False)
        return LanguageModel(self.network, LanguageTokenizer(inner.to_str(), self.tokenizer.begin, self.tokenizer.end))

    @property
    def room(self) -> int | None:
        """Tokens and vectors of a picture at most; None where nothing is said of it."""
        return getattr(self.network.config, "max_position_embeddings", None)

    def forward(self, visual: Tensor, tokens: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return the logits of the token after each: (B, K, W), (B, L) with one `PICTURE` each -> (B, L, V).

        Those at `PICTURE` are of what follows the picture. `counts` (B,) int64 says how many of its K vectors each has.
        """
        vectors, places = self.embedded(visual, tokens, counts)
        logits: Tensor = self.network(inputs_embeds=vectors, use_cache=False).logits
        numbers = torch.arange(tokens.shape[1], device=tokens.device)[None]
        after = numbers - 1 + (visual.shape[1] if counts is None else counts[:, None])
        return gather_tokens(logits, torch.where(numbers < places[:, None], numbers, after))

    def embedded(self, visual: Tensor, tokens: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the vectors that texts with pictures are, (B, L - 1 + K, W), and where the pictures begin, (B,).

        Those of fewer than K vectors end earlier; what follows then is of no use.

        Raises:
            UserError: they are longer than the model can read.
        """
        embed: Any = self.network.get_input_embeddings()
        words: Tensor = embed(tokens.clamp(min=0))
        length = tokens.shape[1] - 1 + visual.shape[1]
        if self.room is not None and length > self.room:
            raise UserError(
                f"options.context: a picture and its text are {length} tokens, the language model takes {self.room}; "
                "give a shorter context, or projector prefix"
            )
        places = (tokens == PICTURE).int().argmax(dim=1)
        return splice(words, places, visual.to(words.dtype), counts), places

    def greedy(self, visual: Tensor, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """Return the likeliest next token again and again, with the keys and values of earlier ones kept.

        Args:
            visual: (B, K, W).
            prompts: with one `PICTURE` each.
            tokens: of a text at most.

        Returns:
            For each the tokens without prompt and end.
        """
        from transformers import GenerationConfig

        longest, device, end = max(map(len, prompts)), visual.device, self.tokenizer.end
        rows = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        vectors, _ = self.embedded(visual, torch.tensor(rows, device=device))
        kept = torch.arange(vectors.shape[1], device=device)[None]
        mask = (kept >= torch.tensor([[longest - len(prompt)] for prompt in prompts], device=device)).long()
        how = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=tokens, eos_token_id=end, pad_token_id=end, use_cache=True
        )
        network: Any = self.network
        said = network.generate(inputs_embeds=vectors, attention_mask=mask, generation_config=how).tolist()
        return [row[: row.index(end)] if end in row else row for row in said]


def splice(words: Tensor, places: Tensor, visual: Tensor, counts: Tensor | None = None) -> Tensor:
    """Put the vectors of a picture in the place of one word of each text.

    Args:
        words: (B, L, W).
        places: (B,) int64, the number of the word.
        visual: (B, K, W).
        counts: (B,) int64, how many of the K each has; all where it is None.

    Returns:
        (B, L - 1 + K, W); what is beyond a text repeats its last word.
    """
    most, first = visual.shape[1], places[:, None]
    count = torch.full_like(first, most) if counts is None else counts[:, None]
    numbers = torch.arange(words.shape[1] - 1 + most, device=words.device)[None]
    inside = (numbers >= first) & (numbers < first + count)
    word = torch.where(numbers < first, numbers, numbers - count + 1).clamp(0, words.shape[1] - 1)
    picture = (numbers - first).clamp(0, most - 1)
    return torch.where(inside[..., None], gather_tokens(visual, picture), gather_tokens(words, word))


def load_language(name: str, tokenizer: str | None = None) -> LanguageModel:
    """Return a language model, in float32; its tables of input and output are two, also where they were one.

    Args:
        name: a folder saved by `transformers`, hf:ID, or tiny?width=128&depth=4&heads=4 for one of random weights.
        tokenizer: the JSON of that of a tiny one.

    Raises:
        UserError: there is no such model, or it lacks weights or a tokenizer.
    """
    if name.partition("?")[0] == TINY:
        assert tokenizer is not None
        return _tiny(EncoderSpec.parse(f"language:{name}"), tokenizer)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = read_name(name).target
    try:
        words = LanguageTokenizer.of_transformers(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except UNLOADABLE as error:
        raise UserError(
            f"options.language: {name!r} holds no causal language model with safetensors weights and a tokenizer.json "
            f"({reason(error)}); give a folder saved by transformers, hf:ID or tiny"
        ) from error
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"options.language: {name!r} lacks weights, for example {missing[0]}; give a complete model")
    return LanguageModel(_untied(network), words)


def _untied(network: PreTrainedModel) -> PreTrainedModel:
    """Give the output a table of its own: checkpoints hold every weight once."""
    head: Any = network.get_output_embeddings()
    if network.config.tie_word_embeddings:
        network.config.tie_word_embeddings = False
        head.weight = nn.Parameter(head.weight.detach().clone())
    return network


def _tiny(spec: EncoderSpec, tokenizer: str) -> LanguageModel:
    """Return a Qwen2 of random weights, drawn with torch's generator."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    spec.check_options("width", "depth", "heads")
    words = LanguageTokenizer.of_captions(tokenizer)
    width, heads = spec.positive("width", 128), spec.positive("heads", 4)
    if width % (2 * heads):
        raise UserError(f"options.language: {spec.target}?width={width} is not right: give a multiple of 2 * heads")
    config = Qwen2Config(
        vocab_size=max(words.inner.get_vocab(with_added_tokens=True).values()) + 1,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=spec.positive("depth", 4),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        bos_token_id=words.begin[0],
        eos_token_id=words.end,
    )
    return LanguageModel(Qwen2ForCausalLM(config), words)
