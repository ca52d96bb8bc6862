"""Facts about drawing: batches, memory, reproducibility, and what is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline
from PIL import Image
from tiny_pipelines import (
    CLASSES,
    conditional_unet,
    ddim,
    pixel_unet,
    save,
    save_net,
    save_vit,
    text_to_image,
)

from granary.curation.errors import UserError
from granary.curation.runs.run import digest
from granary.synth.feedback import sampler as module
from granary.synth.feedback.diffusion import loading
from granary.synth.feedback.diffusion.pixel_pipeline import ClassConditionalPipeline
from granary.synth.feedback.gaussians import ClassSums
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.lending import SamplerSpec
from granary.synth.feedback.recipe import Sampling
from granary.synth.feedback.requests import Drawn, Request
from granary.synth.feedback.sampler import Sampler, out_of_memory, stored


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipelines of the loop below and the classifiers `vit` and `net`."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("text", "xl", "sd3", "unclip", "dit", "ddpm", "classes"):
        save(name, folder / name)
    save_vit(folder / "vit")
    save_net(folder / "net")
    return folder


def sampler(models: Path, name: str = "classes", **changes: Any) -> Sampler:
    """Return a sampler; of the changes, `guidance`, `classifier` and `gaussians`, the rest is of `Sampling`."""
    guidance = GuidanceOptions(**({"omega": 0.05, "every": 2} | changes.pop("guidance", {})))
    classifier, gaussians = changes.pop("classifier", str(models / "vit")), changes.pop("gaussians", None)
    return Sampler(str(models / name), classifier, guidance, Sampling(**{"steps": 4, **changes}), gaussians)


def requests(n: int = 5) -> list[Request]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 2, 3), dtype=np.uint8))  # below any model's
    return [Request(f"row {i}", 100 + i, i % 3, i % 3, "a cat", picture) for i in range(n)]


def same(a: list[Drawn], b: list[Drawn]) -> bool:
    """To the bit."""
    plain = [[dataclasses.replace(d, image=np.empty(0)) for d in drawn] for drawn in (a, b)]
    pictures = all(np.array_equal(x.image, y.image) for x, y in zip(a, b, strict=True))
    return pictures and repr(plain[0]) == repr(plain[1])


def alike(a: list[Drawn], b: list[Drawn]) -> bool:
    """To a grey level and a part in a thousand: other batch sizes add floats in another order."""
    return all(
        x.row_id == y.row_id
        and np.abs(x.image.astype(int) - y.image).max() <= 1
        and np.allclose(x.trace, y.trace, rtol=1e-3)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", ["text", "xl", "sd3", "unclip", "dit", "ddpm", "classes"])
def test_a_sample_does_not_depend_on_its_batch_mates(models: Path, name: str) -> None:
    drawing, rows = sampler(models, name, scheduler="flow" if name == "sd3" else "ddpm"), requests(5)
    together = drawing.draw(rows, 5)
    assert [d.row_id for d in together] == [r.row_id for r in rows]
    assert together[0].image.dtype == np.uint8
    assert together[0].image.shape[2] == 3
    assert alike(drawing.draw(rows, 2), together)
    assert alike(drawing.draw(rows[::-1], 5)[::-1], together)
    assert not np.array_equal(together[0].image, together[3].image)  # one class, two seeds


def test_other_mates_in_a_batch_of_one_size_change_no_bit(models: Path) -> None:
    drawing, rows = sampler(models), requests(8)
    assert same(drawing.draw([*rows[:2], *rows[6:8]], 4)[:2], drawing.draw(rows[:4], 4)[:2])


def test_a_new_sampler_draws_the_same_ids_and_pixels(models: Path) -> None:
    """What is left of a run that was killed can be drawn by another process."""
    rows = requests(6)
    first, second = sampler(models), sampler(models)
    assert first.models == second.models
    whole = first.draw(rows, 2)
    assert same(second.draw(rows[2:], 2), whole[2:])


def test_the_digest_of_what_units_load_tells_settings_apart() -> None:
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"omega": 0.1}, {}),
        ({}, {"steps": 5}),
        ({}, {"scheduler": "ddpm"}),
    ]
    specs = [SamplerSpec("m", "c", GuidanceOptions(**guidance), Sampling(**rest)) for guidance, rest in changes]
    assert len({digest(spec) for spec in specs}) == len(set(specs)) == 4
    assert digest(specs[0]) != digest(dataclasses.replace(specs[0], models="of other files"))


def test_memory_that_runs_out_halves_the_batch_and_the_run_goes_on(models: Path) -> None:
    drawing, rows, sizes = sampler(models), requests(7), []
    expected = drawing.draw(rows, 8)

    def scarce(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    hook = drawing.pipe.unet.register_forward_pre_hook(scarce)
    found = drawing.draw(rows, 8)
    assert drawing.halvings == 2
    assert sizes[0] == 7
    assert max(sizes[2:]) <= 2
    assert alike(found, expected)
    hook.remove()
    hook = drawing.pipe.unet.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(UserError, match="single sample"):
        drawing.draw(rows, 8)
    hook.remove()


def test_other_errors_are_not_taken_for_memory() -> None:
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8589934592 bytes"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        module.attempt(lambda: (_ for _ in ()).throw(RuntimeError("mat1 and mat2")))  # type: ignore[arg-type]


def test_the_value_is_that_of_the_stored_picture(models: Path) -> None:
    drawing = sampler(models, guidance={"criterion": "loss"})
    drawn = drawing.draw(requests(3))
    for i, found in enumerate(drawn):
        pixels = torch.from_numpy(found.image).permute(2, 0, 1)[None].float() / 255
        p = drawing.classifier.logits(pixels).softmax(1)[0]
        assert found.value == pytest.approx(-p[i].log().item(), rel=1e-3)
        assert found.predicted == int(p.argmax())
        assert found.probability == pytest.approx(p.max().item(), rel=1e-3)
        assert len(found.trace) == 2
        assert not found.unguided


def test_a_picture_that_is_not_finite_is_black_and_has_no_value(models: Path) -> None:
    drawing = sampler(models)
    with torch.no_grad():
        drawing.pipe.unet.conv_out.bias.fill_(torch.nan)
    for found in drawing.draw(requests(2)):
        assert np.isnan(found.value)
        assert not found.image.any()
        assert found.unguided
        assert found.skipped == 2


def test_what_a_safety_checker_withholds_has_no_value(models: Path) -> None:
    drawing = sampler(models, "text")
    drawing.pipe.run_safety_checker = lambda image, *_: (image, [False, True])
    assert [np.isnan(found.value) for found in drawing.draw(requests(2))] == [False, True]


def test_stored_pictures_have_three_channels_and_round_to_the_nearest() -> None:
    grey = np.array([0.0, 0.5, 1.0, 0.1234], np.float32).reshape(1, 2, 2, 1)
    assert stored(grey)[0, ..., 2].tolist() == [[0, 128], [255, 31]]


@pytest.mark.parametrize("criterion", ["loss", "entropy", "hardness"])
def test_the_final_criterion_rises_with_omega_and_a_wrong_class_order_would_show(models: Path, criterion: str) -> None:
    """With omega below 0 and the loss, the classifier names the wanted class more often."""
    rows = [Request(f"row {i}", i, i % 3, i % 3) for i in range(24)]
    gaussians = ClassSums().add(np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 32))).finish(3)
    means, hits = [], []
    for omega in (-0.2, 0.0, 0.2):
        guidance = {"criterion": criterion, "omega": omega, "every": 1}
        options = {"guidance": guidance, "gaussians": gaussians, "classifier": f"granary:{models / 'net'}"}
        drawn = sampler(models, **options).draw(rows, 24)
        means.append(np.mean([found.value for found in drawn]))
        hits.append(np.mean([found.predicted == row.target for found, row in zip(drawn, rows, strict=True)]))
    assert means[0] < means[1] < means[2]
    if criterion == "loss":
        assert hits[0] > hits[1]


def test_names_come_from_the_models(models: Path) -> None:
    assert sampler(models).classes == CLASSES
    assert sampler(models, "dit").classes == CLASSES
    assert sampler(models, "text").classes is None
    assert sampler(models).classifier_classes == CLASSES
    assert [sampler(models, name).needs for name in ("classes", "text", "unclip", "dit", "ddpm")] == [
        ("label",),
        ("prompt",),
        ("prompt", "condition"),
        ("label",),
        (),
    ]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("classes", {"label": None}, "none of the model's classes"),
        ("classes", {"label": 3}, "none of the model's classes"),
        ("dit", {"label": 9}, "none of the model's classes"),
        ("classes", {"target": 3}, "none of the classifier's classes"),
        ("unclip", {"condition": None}, "conditioning picture"),
    ],
)
def test_a_request_that_cannot_be_served_is_named(
    models: Path, name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"row 0.*{message}"):
        sampler(models, name).draw([dataclasses.replace(requests(1)[0], **change)])


def test_hardness_needs_real_images_of_the_class(models: Path) -> None:
    with pytest.raises(UserError, match="class Gaussians"):
        sampler(models, guidance={"criterion": "hardness"})
    gaussians = ClassSums().add([0, 0, 2, 2], np.random.default_rng(0).normal(size=(4, 16))).finish(3)
    drawing = sampler(models, guidance={"criterion": "hardness"}, gaussians=gaussians)
    with pytest.raises(UserError, match="no real images of class 'dog'"):
        drawing.draw(requests(2))


def copied(models: Path, tmp_path: Path, name: str = "classes") -> Path:
    shutil.copytree(models / name, tmp_path / name)
    shutil.copytree(models / "vit", tmp_path / "vit")
    return tmp_path


def test_pickled_weights_are_refused_with_the_remedy(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    (folder / "classes/unet/diffusion_pytorch_model.safetensors").rename(
        folder / "classes/unet/diffusion_pytorch_model.bin"
    )
    with pytest.raises(UserError, match=r"pickled weights \(diffusion_pytorch_model.bin\).*safe_serialization=True"):
        sampler(folder)
    folder = copied(models, tmp_path / "again")
    (folder / "vit/model.safetensors").rename(folder / "vit/pytorch_model.bin")
    with pytest.raises(UserError, match=r"classifier: .*pickled weights.*safe_serialization=True"):
        sampler(folder)


def test_a_model_without_a_scheduler_says_how_to_add_one(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    shutil.rmtree(folder / "classes/scheduler")
    with pytest.raises(UserError, match=r"has no scheduler.*save_pretrained"):
        sampler(folder)


def test_a_model_that_the_hub_does_not_give_is_one_sentence(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    def unsafe(*_: Any, **options: Any) -> None:
        assert options == {"use_safetensors": True, "trust_remote_code": False}
        raise OSError("Could not find the necessary `safetensors` weights\nmore")

    monkeypatch.setattr(loading.DiffusionPipeline, "download", unsafe)
    with pytest.raises(UserError, match=r"'org/model' is no folder, and the Hub does not give it \(Could not find"):
        Sampler("org/model", str(models / "vit"), GuidanceOptions())


@pytest.mark.parametrize("name", ["text", "classes"])
def test_checkpoints_change_no_picture(models: Path, name: str) -> None:
    drawing = sampler(models, name, guidance={"checkpoint": True})
    assert drawing.pipe.unet.is_gradient_checkpointing
    assert alike(drawing.draw(requests(2), 2), sampler(models, name).draw(requests(2), 2))


def test_other_broken_models_are_one_sentence(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path)
    (folder / "classes/unet/config.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        sampler(folder)
    for deep in ("[" * 100_000, "[1]"):
        (folder / "classes/model_index.json").write_text(deep)
        with pytest.raises(UserError, match=r"no model_index.json of a diffusers pipeline"):
            sampler(folder)
    (folder / "classes/model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    with pytest.raises(UserError, match=r"is a SanaPipeline; feedback works with .*DiTPipeline"):
        sampler(folder)
    (folder / "classes/model_index.json").unlink()
    with pytest.raises(UserError, match=r"no model_index.json"):
        sampler(folder)
    with pytest.raises(UserError, match="there is no folder"):
        Sampler("./nowhere", str(folder / "vit"), GuidanceOptions())


@pytest.mark.parametrize("name", ["text", "xl", "classes"])
def test_weights_that_were_cut_short_are_one_sentence(name: str, models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path, name)
    weights = next((folder / name / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        sampler(folder, name)


@pytest.mark.parametrize("name", ["text", "xl", "sd3", "unclip", "dit", "ddpm", "classes"])
def test_one_step_is_tried_with_every_family(models: Path, name: str) -> None:
    drawing = sampler(models, name)
    drawing.check()
    assert same(drawing.draw(requests(2)), sampler(models, name).draw(requests(2)))


def test_a_flux_is_loaded_and_drawn_with(models: Path, tmp_path: Path) -> None:
    drawing = Sampler(save("flux", tmp_path / "flux"), str(models / "vit"), GuidanceOptions(), Sampling(steps=2))
    drawing.pipe.default_sample_size = 8  # pictures of 16 pixels; 128 is of every Flux
    drawing.check()
    assert [found.skipped for found in drawing.draw(requests(2))] == [0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPMPipeline(pixel_unet(4), ddim()), "takes classes, which a DDPMPipeline never gives it"),
        (lambda: DDIMPipeline(pixel_unet(4), ddim()), "takes classes, which a DDIMPipeline never gives it"),
        (lambda: DDPMPipeline(pixel_unet(None, 4), ddim()), "makes 4 channels, which are no grey or RGB picture"),
        (lambda: DDPMPipeline(pixel_unet(None, 2), ddim()), "makes 2 channels"),
        (lambda: ClassConditionalPipeline(pixel_unet(4, 4), ddim(), {"0": "cat"}), "makes 4 channels"),
        (lambda: ClassConditionalPipeline(pixel_unet(4), ddim()), "takes classes but names none"),
    ],
)
def test_networks_that_a_pipeline_cannot_use_are_refused_at_load(
    make: Callable[[], Any], message: str, models: Path, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        Sampler(str(tmp_path / "model"), str(models / "vit"), GuidanceOptions())


def broken_text() -> Any:
    pipe = text_to_image()
    pipe.unet = conditional_unet(cross_attention_dim=24)  # the text encoder gives 16
    return pipe


def inpainting() -> Any:
    pipe = text_to_image()
    pipe.unet = conditional_unet(in_channels=9)
    return pipe


@pytest.mark.parametrize("make", [broken_text, inpainting])
def test_networks_that_do_not_fit_are_one_sentence_before_any_plan(
    make: Callable[[], Any], models: Path, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path / "model")
    drawing = Sampler(str(tmp_path / "model"), str(models / "vit"), GuidanceOptions())
    with pytest.raises(UserError, match="a StableDiffusionPipeline cannot draw with these networks") as caught:
        drawing.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["LDMTextToImagePipeline", "LDMPipeline", "KandinskyPipeline", "WanPipeline"])
def test_other_families_are_refused_by_name(name: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match=rf"is a {name}; feedback works with .*FluxPipeline.*StableDiffusionXLPipeline"):
        Sampler(str(tmp_path), str(models / "vit"), GuidanceOptions())


def test_a_decoder_that_overflows_in_half_precision_is_refused(models: Path) -> None:
    with pytest.raises(UserError, match=r"overflows in float16; write bfloat16 or float32"):
        sampler(models, "xl", dtype="float16")


def test_more_steps_than_the_model_was_trained_with_are_refused(models: Path) -> None:
    with pytest.raises(UserError, match="steps: 2000 do not go with"):
        sampler(models, steps=2000)


def test_a_dit_without_names_is_refused(models: Path, tmp_path: Path) -> None:
    folder = copied(models, tmp_path, "dit")
    index = json.loads((folder / "dit/model_index.json").read_text())
    (folder / "dit/model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != "id2label"}))
    with pytest.raises(UserError, match="id2label"):
        sampler(folder, "dit")


@pytest.mark.parametrize("name", ["text", "classes"])
def test_in_half_precision(models: Path, name: str) -> None:
    drawn = sampler(models, name, dtype="bfloat16").draw(requests(2))
    assert all(np.isfinite(found.value) and found.skipped == 0 for found in drawn)


def test_half_precision_that_a_pipeline_cannot_return_is_refused(models: Path) -> None:
    with pytest.raises(UserError, match="no bfloat16 pictures"):
        sampler(models, "ddpm", dtype="bfloat16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["text", "dit", "classes"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_on_cuda(models: Path, name: str, dtype: str) -> None:
    drawn = sampler(models, name, device="cuda", dtype=dtype).draw(requests(3))
    assert all(np.isfinite(found.value) for found in drawn)
