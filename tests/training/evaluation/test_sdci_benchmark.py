"""Facts about the sDCI benchmark: pooling and batches of the sheet, chance levels, an oracle in plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import measure
from tiny_clip import caption, png, rectangles, row, scene_rows, tiny_clip, write_pairs

from granary.curation.errors import UserError
from granary.training.data.pairs import Entry, Negative, read_entries
from granary.training.evaluation.protocols import sdci
from granary.training.models.clip_transformers import ClipModel


class Table:
    """A scorer that looks logits up: vectors of pictures are rows of a matrix, those of texts columns."""

    def __init__(self, logits: np.ndarray | torch.Tensor) -> None:
        self.table = torch.as_tensor(logits)
        self.truncated = 0

    def prepared(self, pictures: list[Any]) -> list[torch.Tensor | None]:
        return [torch.tensor([float(picture())]) for picture in pictures]

    def images(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.table[pixels[:, 0].long()]

    def texts(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(self.table.shape[1], dtype=self.table.dtype)[[int(text) for text in texts]]

    def logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return images @ texts.T

    def own_logits(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return (texts * images[:, None]).sum(dim=2)


class Numbered(Entry):
    """An entry whose picture is its number."""

    def image(self) -> Any:
        return int(self.id)


def entries(
    count: int, captions: int = 5, base: Any = lambda number: True, scored: bool = True, negatives: int = 1
) -> list[Entry]:
    """Return entries with texts that are column numbers: captions first, then negatives."""
    width = captions + negatives
    found: list[Entry] = []
    for number in range(count):
        texts = [str(number * width + at) for at in range(width)]
        wrong = tuple(
            Negative("swaps", text, float(at) if scored else None) for at, text in enumerate(texts[captions:])
        )
        found.append(Numbered(str(number), "f", "base", base(number), "test", tuple(texts[:captions]), wrong))
    return found


def run(table: Any, rows: list[Entry], batch: int = 32) -> dict[str, float | None]:
    return sdci.benchmark(Table(table), rows, batch)  # type: ignore[arg-type]


GOLDEN = torch.tensor([[5.0, 1.0, 6.0, 0.0], [2.0, 3.0, 9.0, 4.0]])


def test_pooling_of_the_sheet() -> None:
    assert sdci.pooled(GOLDEN, 2).tolist() == [[1.0, 6.0], [3.0, 4.0]]
    assert sdci.matched(GOLDEN, 2).tolist() == [False, True]  # accuracy 0.5; mean pooling would call it a tie


def test_the_worst_own_caption_counts() -> None:
    """Positives (5, 1) against a rival group of maximum 3: wrong, though their mean is no less."""
    assert not sdci.matched(torch.tensor([[5.0, 1.0, 3.0, 0.0], [0.0, 0.0, 1.0, 1.0]]), 2)[0]


def test_a_negative_must_be_strictly_below_all_positives() -> None:
    positives = torch.tensor([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0]])
    assert sdci.beaten(positives, torch.tensor([1.9, 2.0, 2.5])).tolist() == [True, False, False]


def test_chance_levels_of_the_sheet() -> None:
    assert sdci.matching_chance(8, 1) == 1 / 8
    assert sdci.matching_chance(8, 5) == 1 / 658008
    scores = run(np.zeros((16, 96)), entries(16))
    assert scores["All-SCM.chance"] == 1 / 8
    assert scores["All-Pick5-SCM.chance"] == 1 / 658008
    assert scores["All-Pick5-Neg.chance"] == 1 / 6
    assert [scores[f"{name}.chance"] for name in ("All-Neg", "Base-Neg", "All-Hard-Negs")] == [1 / 2] * 3


def test_a_random_scorer_scores_at_chance() -> None:
    """Within 4.5 standard deviations of the closed forms, over 8,000 entries and pick 2 of batches of 2."""
    count = 8000
    random = np.random.default_rng(0)
    hits = {"matched": 0, "beaten": 0, "matched2": 0, "beaten5": 0}
    for _ in range(count // 8):
        logits = torch.as_tensor(random.normal(size=(8, 8)))
        hits["matched"] += int(sdci.matched(logits, 1).sum())
        hits["beaten"] += int(sdci.beaten(logits[:, :1], logits[:, 1]).sum())
        hits["beaten5"] += int(sdci.beaten(logits[:, :5], logits[:, 5]).sum())
        hits["matched2"] += int(sdci.matched(torch.as_tensor(random.normal(size=(2, 4))), 2).sum()) * 4
    expected = {"matched": 1 / 8, "beaten": 1 / 2, "matched2": sdci.matching_chance(2, 2), "beaten5": 1 / 6}
    assert expected["matched2"] == 1 / 6
    for name, chance in expected.items():
        draws = count if name != "matched2" else count // 4
        assert abs(hits[name] / count - chance) < 4.5 * math.sqrt(chance * (1 - chance) / draws), name


def test_against_loops_over_python_numbers() -> None:
    """An oracle that shares no code: 21 entries, some with few captions, masks among them, two negatives each."""
    random = np.random.default_rng(3)
    full = entries(21, captions=5, base=lambda number: number % 3 == 0, negatives=2)
    rows = [
        Numbered(e.id, e.file, e.key, e.base, e.split, e.captions[: 3 if number % 4 == 1 else 5], e.negatives)
        for number, e in enumerate(full)
    ]
    table = random.normal(size=(21, 21 * 7)).astype(np.float32)
    for number, e in enumerate(rows):
        table[number, [int(text) for text in e.captions]] += 1.5
    scores = run(table, rows, batch=5)
    for name, texts, base in (("All", 1, False), ("All-Pick5", 5, False), ("Base", 1, True)):
        taking = [e for e in rows if len(e.captions) >= texts and (e.base or not base)]
        wins = sum(
            min(table[int(e.id), int(t)] for t in e.captions[:texts]) > table[int(e.id), int(e.negatives[0].text)]
            for e in taking
        )
        assert scores[f"{name}-Neg"] == pytest.approx(wins / len(taking))
        assert scores[f"{name}-Neg.entries"] == len(taking)
        if base:
            continue
        matches = 0
        for start in range(0, len(taking), 8):
            neighbours = taking[start : start + 8]
            for e in neighbours:
                own = min(table[int(e.id), int(t)] for t in e.captions[:texts])
                rivals = [table[int(e.id), int(t)] for o in neighbours if o is not e for t in o.captions[:texts]]
                matches += own > max(rivals)
        assert scores[f"{name}-SCM"] == pytest.approx(matches / len(taking))
        assert scores[f"{name}-SCM.last_batch"] == len(taking) % 8 or 8
    hard = sum(table[int(e.id), int(e.captions[0])] > table[int(e.id), int(e.negatives[1].text)] for e in rows)
    assert scores["All-Hard-Negs"] == pytest.approx(hard / 21)


def test_encoding_in_other_pieces_changes_nothing() -> None:
    random = np.random.default_rng(1)
    table, rows = random.normal(size=(37, 37 * 6)), entries(37)
    assert run(table, rows, batch=1) == run(table, rows, batch=8) == run(table, rows, batch=64)


def test_the_order_is_part_of_the_benchmark() -> None:
    """Neighbours whose captions are confused lose; spread over batches they win."""
    table = np.zeros((64, 64 * 2))
    for number in range(64):
        for rival in range(64):
            table[number, rival * 2] = 2.0 if rival // 8 == number // 8 else 0.0
        table[number, number * 2] = 1.0
    together = entries(64, captions=1)
    apart = [together[8 * (place % 8) + place // 8] for place in range(64)]
    assert run(table, together)["All-SCM"] == 0
    assert run(table, apart)["All-SCM"] == 1


def test_the_last_batch_may_be_smaller_and_is_said() -> None:
    scores = run(np.zeros((11, 22)), entries(11, captions=1))
    assert scores["All-SCM.last_batch"] == 3
    assert scores["All-SCM.chance"] == pytest.approx(2 / 11)  # two batches, one expected match in each


def test_a_constant_scorer_never_beats_a_negative() -> None:
    scores = run(np.ones((16, 96)), entries(16))
    assert scores["All-Neg"] == scores["All-Pick5-Neg"] == scores["All-Hard-Negs"] == 0
    assert scores["All-SCM"] == 1 / 8  # ties go to the first of the batch


def test_a_text_equal_to_its_negative_is_no_win_for_a_real_model(tmp_path: Path) -> None:
    image = rectangles(("red", "blue"), 0)
    rows = [
        row(str(n), image, [caption(("red", "blue"), n % 6)], [("swaps", caption(("red", "blue"), n % 6))])
        for n in range(20)
    ]
    scores = sdci.benchmark(tiny_clip(), read_entries(write_pairs(tmp_path, rows)))
    assert scores["All-Neg"] == 0


def test_hardest_is_by_score_and_missing_scores_are_left_out() -> None:
    table = np.zeros((2, 4))
    table[:, 0], table[:, 1], table[:, 2], table[:, 3] = 1, 2, 0, 0
    scored = (Negative("basic", "1", 9.0), Negative("swaps", "2", 3.0))
    unscored = (Negative("basic", "1", None), Negative("swaps", "2", None))
    rows: list[Entry] = [
        Numbered("0", "f", "base", True, "test", ("0",), scored),
        Numbered("1", "f", "m-1-sc", False, "test", ("0",), unscored),
    ]
    scores = run(table, rows)
    assert scores["All-Hard-Negs"] == 0
    assert scores["All-Hard-Negs.entries"] == 1
    assert scores["All-Neg"] == 1
    assert run(table, rows[1:])["All-Hard-Negs"] is None


def test_entries_without_text_or_negative() -> None:
    """No caption: dropped and counted, out of all batches. No negative: rival in SCM, not in Neg."""
    table = np.eye(10, 20)
    rows: list[Entry] = [
        Numbered(
            str(n), "f", "m", False, "test", () if n == 4 else (str(n),), () if n == 5 else (Negative("swaps", "19"),)
        )
        for n in range(10)
    ]
    scores = run(table, rows)
    assert scores["entries"] == 10
    assert scores["entries.empty"] == 1
    assert (scores["All-SCM.entries"], scores["All-SCM.last_batch"], scores["All-Neg.entries"]) == (9, 1, 8)
    assert scores["Base-Neg"] is None


# -- with a model and shards -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    return tiny_clip(width=16, layers=(1, 1))


def test_the_same_from_any_number_of_shards_and_from_a_saved_model(clip: ClipModel, tmp_path: Path) -> None:
    rows = scene_rows(21)
    one, many = write_pairs(tmp_path / "one", rows, 1), write_pairs(tmp_path / "many", rows, 4)
    clip.save(str(tmp_path / "model"))
    direct = sdci.benchmark(clip, read_entries(one))
    assert measure(sdci, str(tmp_path / "model"), one, device="cpu") == direct
    assert measure(sdci, str(tmp_path), many, device="cpu", batch=4) == direct  # a folder that holds `model/`
    assert direct["All-SCM.entries"] == 21
    assert direct["All-SCM.last_batch"] == 5


def test_splits_and_limits(clip: ClipModel, tmp_path: Path) -> None:
    clip.save(str(tmp_path / "model"))
    run = write_pairs(tmp_path, [*scene_rows(10), *scene_rows(6, 1, "test")])
    assert measure(sdci, str(tmp_path), run, split="test", device="cpu")["entries"] == 6
    assert measure(sdci, str(tmp_path), run, limit=3, device="cpu")["entries"] == 3
    with pytest.raises(UserError, match=r"split: 'valid' is not right; the splits of .* are 'test', 'train'"):
        measure(sdci, str(tmp_path), run, split="valid", device="cpu")


def test_a_broken_picture_is_counted_and_the_rest_is_scored(clip: ClipModel, tmp_path: Path) -> None:
    rows = scene_rows(12)
    rows[3]["image"] = {"bytes": b"\x89PNG\r\n\x1a\nnothing", "path": "x.png"}
    scores = sdci.benchmark(clip, read_entries(write_pairs(tmp_path, rows)))
    assert scores["entries.unreadable"] == 1
    assert scores["All-SCM.entries"] == 11


def test_long_texts_are_truncated_and_counted(clip: ClipModel, tmp_path: Path) -> None:
    rows = scene_rows(9)
    limit = clip.context
    rows[0]["captions"] = ["red " * (limit - 2)]  # with its two ends as long as the context
    rows[1]["captions"] = ["red " * (limit - 1)]
    rows[2]["captions"] = ["blue " * 200_000]
    scores = sdci.benchmark(clip, read_entries(write_pairs(tmp_path, rows)))
    assert scores["texts.truncated"] == 2
    assert scores["All-SCM.entries"] == 9


def test_a_truncated_text_keeps_its_end_token(clip: ClipModel) -> None:
    """The vector of a text is that of its end token: without one all long texts would be alike."""
    tokens = clip.tokens(["red " * 100, "blue " * 100])["input_ids"]
    assert tokens.shape == (2, clip.context)
    assert (tokens[:, -1] == clip.tokenizer.eos_token_id).all()


def test_a_vector_does_not_depend_on_its_batch(clip: ClipModel) -> None:
    texts = [caption(("red", "blue")), caption(("red", "blue", "white"), 1)]
    torch.testing.assert_close(clip.texts(texts)[:1], clip.texts(texts[:1]), atol=1e-6, rtol=0)
    pixels = clip.pixels([rectangles(("red", "blue"), n) for n in range(3)])
    torch.testing.assert_close(clip.images(pixels)[1:2], clip.images(pixels[1:2]), atol=1e-6, rtol=0)


def test_logits_are_those_of_transformers(clip: ClipModel) -> None:
    pixels, tokens = clip.pixels([rectangles(("red", "blue"), n) for n in range(3)]), clip.tokens(["red", "blue block"])
    with torch.inference_mode():
        theirs = clip.model(pixel_values=pixels, **tokens).logits_per_image
        ours = clip.logits(clip.encode_pixels(pixels), clip.encode_tokens(tokens))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_siglip_is_scored_with_its_bias_and_its_padding() -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 64, "max_position_embeddings": 12, "projection_size": 16}
    torch.manual_seed(0)
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8})
    ).eval()
    clip = ClipModel(model, tiny_clip().tokenizer, SiglipImageProcessorPil(size={"height": 32, "width": 32}), "siglip")
    tokens, pixels = clip.tokens(["red", "blue block"]), clip.pixels([rectangles(("red", "blue"), 1)])
    assert tokens["input_ids"].shape == (2, 12)
    with torch.inference_mode():
        theirs = model(pixel_values=pixels, input_ids=tokens["input_ids"]).logits_per_image
        ours = clip.logits(clip.images(pixels), clip.texts(["red", "blue block"]))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_crops_cut_at_load_time_score_as_stored_ones(clip: ClipModel, tmp_path: Path) -> None:
    """Rows without a picture take `box` out of the image of their annotation file in config `data`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = [rectangles(("red", "blue", "white"), number, 64) for number in range(8)]
    box = (4, 8, 40, 60)
    stored = [row(str(n), image.crop(box), [caption(("red", "blue"))]) for n, image in enumerate(whole)]
    boxes = [{**given, "image": None, "box": list(box)} for given in stored]
    folder = tmp_path / "boxes" / "dataset" / "data"
    folder.mkdir(parents=True)
    for shard in range(2):
        half = range(shard * 4, shard * 4 + 4)
        images = [{"bytes": png(whole[n]), "path": None} for n in half]
        table = pa.table({"file": [f"{n}.json" for n in half], "image": images})
        pq.write_table(table, folder / f"train-{shard:05d}-of-00002.parquet", row_group_size=3)
    a = list(read_entries(write_pairs(tmp_path / "stored", stored)))
    b = list(read_entries(write_pairs(tmp_path / "boxes", boxes)))
    assert [x.image().tobytes() for x in a] == [x.image().tobytes() for x in b]
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"the image of '4\.json' is in no shard"):
        list(read_entries(str(tmp_path / "boxes")))


def test_mistakes_are_sentences(clip: ClipModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no config `pairs`"):
        list(read_entries(str(tmp_path)))
    run = write_pairs(tmp_path, scene_rows(4), 1)
    shard = tmp_path / "dataset" / "pairs" / "train-00000-of-00001.parquet"
    with pytest.raises(UserError, match="there is no folder"):
        measure(sdci, str(tmp_path / "missing"), run)
    with pytest.raises(UserError, match="holds no CLIP-style model"):
        measure(sdci, str(tmp_path), run)
    clip.save(str(tmp_path / "model"))
    with pytest.raises(UserError, match="dtype: 'int8' is not right"):
        measure(sdci, str(tmp_path), run, dtype="int8")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        measure(sdci, str(tmp_path), run, device="cpu")


def test_a_model_without_a_text_encoder_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    clip = tiny_clip(width=16, layers=(1, 1))
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    clip.tokenizer.save_pretrained(tmp_path)
    clip.processor.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a vit, which scores no image against a text"):
        ClipModel.load(str(tmp_path))


def test_a_damaged_weight_file_is_a_sentence(clip: ClipModel, tmp_path: Path) -> None:
    clip.save(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="holds no CLIP-style model with safetensors weights"):
        ClipModel.load(str(tmp_path))


def test_a_model_that_lacks_weights_is_refused(clip: ClipModel, tmp_path: Path) -> None:
    """What a file lacks transformers would draw at random."""
    from safetensors.torch import load_file, save_file

    clip.save(str(tmp_path))
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights, for example text_projection\.weight"):
        ClipModel.load(str(tmp_path))


def test_entries_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """The first shard's entries come although the second is broken: shards are opened one after another."""
    run = write_pairs(tmp_path, scene_rows(40))
    (tmp_path / "dataset" / "pairs" / "train-00001-of-00002.parquet").write_bytes(b"PAR1")
    entries = read_entries(run)
    assert [next(entries).id for _ in range(20)] == [f"train-{n:04d}" for n in range(20)]
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet' cannot be read"):
        next(entries)


def test_weights_that_are_no_numbers_are_a_sentence(clip: ClipModel, tmp_path: Path) -> None:
    broken = tiny_clip(width=16, layers=(1, 1))
    with torch.no_grad():
        broken.model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="logits that are not finite"):
        sdci.benchmark(broken, read_entries(write_pairs(tmp_path, scene_rows(8))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_scores_on_cuda(clip: ClipModel, tmp_path: Path) -> None:
    run = write_pairs(tmp_path, scene_rows(21))
    clip.save(str(tmp_path / "model"))
    cpu, cuda = (measure(sdci, str(tmp_path), run, device=device) for device in ("cpu", "cuda"))
    assert cpu["All-SCM.entries"] == cuda["All-SCM.entries"]
    assert abs((cpu["All-SCM"] or 0) - (cuda["All-SCM"] or 0)) < 0.1
