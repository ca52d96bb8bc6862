"""Facts about the LoRA fine-tuning: what learns, what is saved, resuming, and that no entry is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import scene_rows, tiny_clip, write_pairs
from torch.nn.functional import binary_cross_entropy_with_logits

from granary.curation.errors import UserError
from granary.pipelines.engine.recipe import load_recipe
from granary.training.data.pairs import read_entries, row_groups, shuffled_entries
from granary.training.evaluation.evaluate import EvaluateRecipe
from granary.training.methods import dci_lora as dci_finetuning
from granary.training.methods.dci_lora import FinetuneRecipe, Finetuning, ahead, fabric_of, finetune
from granary.training.models.clip_transformers import ClipModel

Setup = Callable[..., FinetuneRecipe]


@pytest.fixture(scope="module")
def base() -> ClipModel:
    return tiny_clip(width=16, layers=(1, 1))


@pytest.fixture
def setup(base: ClipModel, tmp_path: Path) -> Setup:
    """Return recipes for a tiny model, 23 entries to train on and 6 to validate; `out` as named."""
    base.save(str(tmp_path / "model"))
    data = write_pairs(tmp_path, [*scene_rows(23), *scene_rows(6, 1, "valid")], 3)

    def recipe(out: str = "out", **changes: Any) -> FinetuneRecipe:
        settings = {"model": str(tmp_path / "model"), "data": data, "out": str(tmp_path / out), "accelerator": "cpu"}
        return FinetuneRecipe.model_validate({**settings, "batch": 8, "epochs": 2, **changes})

    return recipe


def quietly(recipe: FinetuneRecipe) -> dict[str, Any]:
    return finetune(recipe, lambda line: None)


def weights(recipe: FinetuneRecipe) -> bytes:
    return (Path(recipe.out) / "model" / "model.safetensors").read_bytes()


def state_of(recipe: FinetuneRecipe) -> Finetuning:
    return Finetuning(recipe, fabric_of(recipe), lambda line: None)


# -- entries ---------------------------------------------------------------------------------------------------------


def test_an_epoch_visits_every_entry_once_in_another_order(setup: Setup) -> None:
    """The published sampler never yields the last image's remaining captions; here nothing is left out."""
    data = setup().data
    groups = row_groups(data, "train")
    expected = sorted(entry.id for entry in read_entries(data, "train"))
    orders = []
    for epoch in range(3):
        for together in (1, 2, 100):
            order = [entry.id for entry in shuffled_entries(data, groups, "train", 0, epoch, together)]
            assert sorted(order) == expected
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [entry.id for entry in shuffled_entries(data, groups, "train", 0, 0, 100)] == orders[0]


def test_batches_leave_out_less_than_one_batch_and_others_each_epoch(setup: Setup) -> None:
    state = state_of(setup(drop_last=True))
    groups = row_groups(state.recipe.data, "train")
    left: list[set[int]] = []
    for epoch in range(4):
        ids = [entry.id for entry in shuffled_entries(state.recipe.data, groups, "train", 0, epoch)]
        entries = list(shuffled_entries(state.recipe.data, groups, "train", 0, epoch))
        sizes = [len(batch.pixels) for batch in state.batches(iter(entries), epoch, True)]
        assert sizes == [8, 8]
        left.append({hash(name) for name in ids[16:]})
        sizes = [len(batch.pixels) for batch in state.batches(iter(entries), epoch, False)]
        assert sizes == [8, 8, 7]
    assert len({frozenset(names) for names in left}) == 4


def test_two_devices_share_the_batches(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    class Share:
        world_size = 2

    state = state_of(setup(batch=4))
    entries = list(read_entries(state.recipe.data, "train"))
    seen = []
    for rank in range(2):
        monkeypatch.setattr(state, "batch", lambda own, epoch: seen.extend(entry.id for entry in own))
        share: Any = Share()
        share.global_rank = rank
        state.fabric = share
        assert len(list(state.batches(iter(entries), 0, True))) == 2
    assert sorted(seen) == sorted(entry.id for entry in entries[:16])


def test_preparing_ahead_keeps_order_and_raises() -> None:
    assert list(ahead(iter(range(100)))) == list(range(100))

    def broken() -> Any:
        yield 1
        raise UserError("second")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(UserError, match="second"):
        next(items)


# -- the step --------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_transformers_and_torch(setup: Setup) -> None:
    """One step's losses against the model's own contrastive loss and binary cross-entropy, entry by entry."""
    state = state_of(setup(captions="first", beta=9, alpha=0.5))
    state.encoders.eval()
    entries = list(read_entries(state.recipe.data, "train"))[:5]
    with torch.no_grad():
        losses = state.losses(state.batch(entries, 0))
        pixels = state.clip.pixels([entry.image() for entry in entries])
        firsts = state.clip.tokens([entry.captions[0] for entry in entries])
        theirs = state.clip.model(pixel_values=pixels, return_loss=True, **firsts)
        terms = []
        for at, entry in enumerate(entries):
            inputs = state.clip.tokens([entry.captions[0], entry.negatives[0].text])
            logits = state.clip.model(pixel_values=pixels[at : at + 1], **inputs).logits_per_image[0]
            terms.append(binary_cross_entropy_with_logits(logits, torch.tensor([1.0, 0.0])))
    torch.testing.assert_close(losses["clip_loss"], theirs.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["negative_loss"], torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses["loss"], 0.5 * losses["clip_loss"] + 9 * losses["negative_loss"])


@pytest.mark.parametrize("pooling", ["mean", "hardest", "hardest_as_published"])
def test_pick5_trains_on_five_captions_of_each_entry(setup: Setup, pooling: str) -> None:
    state = state_of(setup(captions="pick5", pooling=pooling))
    batch = state.batch(list(read_entries(state.recipe.data, "train"))[:4], 0)
    assert batch.captions == 5
    assert len(batch.tokens["input_ids"]) == 4 * 5 + 4
    assert torch.isfinite(state.losses(batch)["loss"])


def test_the_negative_term_as_published_is_that_of_hardest(setup: Setup) -> None:
    terms = {}
    for pooling in ("hardest", "hardest_as_published"):
        state = state_of(setup(captions="pick5", pooling=pooling))
        state.encoders.eval()
        terms[pooling] = state.losses(state.batch(list(read_entries(state.recipe.data, "train"))[:4], 0))
    hardest, published = terms["hardest"], terms["hardest_as_published"]
    torch.testing.assert_close(hardest["negative_loss"], published["negative_loss"])
    assert not torch.equal(hardest["clip_loss"], published["clip_loss"])


def test_without_beta_negatives_have_no_say(setup: Setup, tmp_path: Path) -> None:
    rows = scene_rows(23)
    for given in rows:
        given["negatives"] = []
    other = write_pairs(tmp_path / "other", rows, 3)
    facts = quietly(setup("a", beta=0, validation=None))
    quietly(setup("b", beta=0, validation=None, data=other))
    assert weights(setup("a")) == weights(setup("b"))
    assert facts["last"]["negative_loss"] == 0
    quietly(setup("c", beta=1, validation=None))
    assert weights(setup("a")) != weights(setup("c"))


def test_entries_without_a_negative_still_have_a_contrastive_loss(setup: Setup, tmp_path: Path) -> None:
    rows = scene_rows(8)
    for given in rows[:4]:
        given["negatives"] = []
    state = state_of(setup(data=write_pairs(tmp_path / "some", rows)))
    batch = state.batch(list(read_entries(state.recipe.data)), 0)
    assert batch.rows.tolist() == [4, 5, 6, 7]
    assert len(batch.pixels) == 8


# -- what learns and what is saved -----------------------------------------------------------------------------------


def test_only_the_adapted_layers_change(setup: Setup, base: ClipModel) -> None:
    recipe = setup(lr=0.01)
    quietly(recipe)
    before, after = base.model.state_dict(), ClipModel.load(recipe.out, "cpu").model.state_dict()
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "visual_projection", "text_projection")
    assert changed == {name for name in before if name.split(".")[-2:][0] in layers}


def test_the_number_of_parameters_that_learn(setup: Setup) -> None:
    """Rank 2: for each layer 2 (in + out), and its bias; the projections have none. Width 16, MLP 64, a block each."""
    block = 4 * (2 * (16 + 16) + 16) + (2 * (16 + 64) + 64) + (2 * (64 + 16) + 16)
    facts = quietly(setup(lora={"rank": 2}, epochs=1, validation=None))
    assert facts["learning_parameters"] == 2 * block + 2 * 2 * (16 + 16)


def test_adapters_on_the_base_are_the_merged_model(setup: Setup, base: ClipModel) -> None:
    from peft import PeftModel

    recipe = setup(lr=0.01)
    quietly(recipe)
    files = {path.name for path in (Path(recipe.out) / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    adapted = ClipModel.load(recipe.model, "cpu")
    adapted.model = PeftModel.from_pretrained(adapted.model, f"{recipe.out}/adapter").get_base_model().eval()
    merged = ClipModel.load(recipe.out, "cpu")
    entries = list(read_entries(recipe.data, "valid"))
    pixels = base.pixels([entry.image() for entry in entries])
    texts = [entry.captions[0] for entry in entries]
    a, b, plain = (clip.logits(clip.images(pixels), clip.texts(texts)) for clip in (adapted, merged, base))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert (a - plain).abs().max() > 0.05


def test_nothing_written_is_pickled(setup: Setup) -> None:
    recipe = setup(epochs=1)
    quietly(recipe)
    endings = {path.suffix for path in Path(recipe.out).rglob("*") if path.is_file()}
    assert endings == {".safetensors", ".json", ".csv", ".yaml"}


# -- determinism and resuming ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(setup: Setup) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        quietly(setup(out, seed=seed))
    assert weights(setup("a")) == weights(setup("b"))
    assert weights(setup("a")) != weights(setup("c"))
    assert Path(setup("a").out, "losses.csv").read_bytes() == Path(setup("b").out, "losses.csv").read_bytes()


def test_stopped_and_continued_is_as_if_never_stopped(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    quietly(setup("whole", epochs=3))
    step = Finetuning.train_step

    def killed(self: Finetuning, batch: Any) -> None:
        if self.step == 3:  # within the second epoch
            raise KeyboardInterrupt
        step(self, batch)

    monkeypatch.setattr(Finetuning, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        quietly(setup("stopped", epochs=3))
    monkeypatch.setattr(Finetuning, "train_step", step)
    said: list[str] = []
    facts = finetune(setup("stopped", epochs=3), said.append)
    assert said[0] == "going on after epoch 1, step 2"
    assert facts["steps"] == 6
    assert weights(setup("whole")) == weights(setup("stopped"))
    assert Path(setup("whole").out, "losses.csv").read_bytes() == Path(setup("stopped").out, "losses.csv").read_bytes()


def test_more_epochs_continue_a_finished_run(setup: Setup) -> None:
    quietly(setup("whole", epochs=3))
    quietly(setup("longer", epochs=1))
    quietly(setup("longer", epochs=3))
    assert weights(setup("whole")) == weights(setup("longer"))


def test_another_recipe_or_another_folder_is_refused(setup: Setup, tmp_path: Path) -> None:
    quietly(setup(epochs=1))
    with pytest.raises(UserError, match="holds a run of another recipe"):
        quietly(setup(epochs=1, beta=9))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not empty and holds no fine-tuning"):
        quietly(setup("full"))


def test_the_weights_with_the_lowest_validation_loss_are_kept(setup: Setup) -> None:
    """At this rate the loss of later epochs is higher; the loss of what was written is the lowest one."""
    recipe = setup(lr=0.3, epochs=4, captions="first")
    facts = quietly(recipe)
    losses = facts["validation_losses"]
    assert len(losses) == 4
    assert min(losses) < losses[-1]
    assert facts["chosen_by"] == "validation loss"
    state = state_of(setup("again", model=recipe.out, captions="first"))
    state.encoders.eval()
    with torch.no_grad():
        loss = state.losses(state.batch(list(read_entries(recipe.data, "valid")), 0))["loss"]
    assert float(loss) == pytest.approx(min(losses), rel=1e-3)


def test_without_a_validation_split_the_last_weights_are_kept(setup: Setup) -> None:
    quietly(setup("a", validation="missing"))
    facts = quietly(setup("b", validation=None))
    assert facts["chosen_by"] == "the last step"
    assert weights(setup("a")) == weights(setup("b"))


def test_steps_end_the_training_within_an_epoch(setup: Setup) -> None:
    assert quietly(setup(steps=3, epochs=9))["steps"] == 3
    lines = Path(setup().out, "losses.csv").read_text().splitlines()
    assert lines[0] == "step,epoch,loss,clip_loss,negative_loss"
    assert len(lines) == 4


# -- bad input -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_skipped_and_said(setup: Setup, tmp_path: Path) -> None:
    rows = scene_rows(18)
    rows[2]["image"] = {"bytes": b"GIF89a", "path": None}
    rows[5]["captions"] = ["", "  "]
    rows[6]["captions"] = ["red " * 500]
    facts = quietly(setup(data=write_pairs(tmp_path / "bad", rows), drop_last=False, validation=None, epochs=1))
    assert facts["entries_unreadable"] == ["train-0002"]
    assert facts["entries_without_caption"] == 1
    assert facts["texts_truncated"] == 1
    assert facts["steps"] == 3


def test_mistakes_are_sentences(setup: Setup) -> None:
    with pytest.raises(UserError, match="batch: 64 entries are more than split 'train' has"):
        quietly(setup("a", batch=64))
    with pytest.raises(UserError, match="split: 'dev' is not right"):
        quietly(setup("b", split="dev"))
    with pytest.raises(UserError, match=r"the loss of step \d is not finite"):
        quietly(setup("c", lr=1e30))


def test_a_model_that_is_no_clip_is_refused(setup: Setup, base: ClipModel, tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shared, "vocab_size": 64, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    config = SiglipConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8})
    ClipModel(SiglipModel(config), base.tokenizer, base.processor, "siglip").save(str(tmp_path / "siglip"))
    with pytest.raises(UserError, match="is a siglip without a layer visual_projection; fine-tuning needs a CLIP"):
        quietly(setup(model=str(tmp_path / "siglip")))


# -- recipes ---------------------------------------------------------------------------------------------------------


def test_the_shipped_recipe_runs_at_a_reduced_size(setup: Setup) -> None:
    plain = setup()
    places = ["--model", plain.model, "--data", plain.data, "--out", plain.out, "--accelerator", "cpu"]
    recipe = load_recipe(FinetuneRecipe, "configs/train/sdci_lora.yaml", [*places, "--batch", "8", "--epochs", "1"])
    assert (recipe.lora.rank, recipe.lora.dropout, recipe.lora.alpha, recipe.captions) == (4, 0.2, 2, "pick1")
    assert json.loads(json.dumps(quietly(recipe)))["steps"] == 2


def test_the_shipped_evaluation_parses(tmp_path: Path) -> None:
    places = ["--model", "m", "--data", "d", "--out", str(tmp_path / "scores.json")]
    recipe = load_recipe(EvaluateRecipe, "configs/evaluate/sdci.yaml", places)
    assert (recipe.protocols, recipe.split) == (["sdci"], "test")


def test_the_first_loss_is_that_of_the_untrained_adapters(setup: Setup, base: ClipModel) -> None:
    """Adapters begin as nothing: without dropout the first line of losses.csv is the base model's loss."""
    recipe = setup(epochs=1, captions="first", lora={"dropout": 0.0}, validation=None)
    quietly(recipe)
    first = dict(
        zip(dci_finetuning.COLUMNS, Path(recipe.out, "losses.csv").read_text().splitlines()[1].split(","), strict=True)
    )
    groups = row_groups(recipe.data, "train")
    entries = list(shuffled_entries(recipe.data, groups, "train", 0, 0))[:8]
    logits = base.logits(
        base.images(base.pixels([entry.image() for entry in entries])), base.texts([e.captions[0] for e in entries])
    )
    rows = [logits.softmax(dim)[at, at].log().item() for dim in (0, 1) for at in range(8)]
    assert float(first["clip_loss"]) == pytest.approx(-sum(rows) / 16, rel=1e-4)
    assert math.isfinite(float(first["loss"]))
