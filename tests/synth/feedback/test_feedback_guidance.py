"""Facts about feedback inside unmodified pipelines of diffusers, tiny and with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny_pipelines import FAMILIES, classes_in_pixels, ddim, dit, text_to_image
from torch import Tensor

from granary.curation.errors import UserError
from granary.synth.feedback.diffusion.families import FAMILIES as KNOWN
from granary.synth.feedback.diffusion.families import decoder, family_of, image_embeds
from granary.synth.feedback.diffusion.loading import _set_scheduler
from granary.synth.feedback.guidance.hooks import Feedback, Moved, norms, pictures
from granary.synth.feedback.guidance.options import GuidanceOptions
from granary.synth.feedback.requests import Request

# classifier-free guidance on, where there is any
SCALE = dict.fromkeys(("text", "xl", "sd3", "unclip", "dit", "classes"), 3.0)
CASES = [
    *((name, scheduler) for name in ("text", "classes") for scheduler in ("ddpm", "ddim", "dpm++", "euler")),
    *(("unclip", "dpm++"), ("unclip", "euler"), ("dit", "ddpm"), ("dit", "euler"), ("ddpm", "ddpm"), ("ddpm", "dpm++")),
    *(("ddim", "ddim"), ("text", "pndm"), ("xl", "euler"), ("sd3", "flow"), ("flux", "flow")),
]


@functools.cache
def pipeline(name: str) -> Any:
    pipe = FAMILIES[name]()
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipe


def requests(n: int) -> list[Request]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    return [Request(f"row {i}", 10 + i, i % 3, i % 3, "a cat", picture) for i in range(n)]


def generators(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(10 + i) for i in range(n)]


def run(name: str, feedback: Feedback | None = None, n: int = 3, steps: int = 3, **changes: Any) -> np.ndarray:
    """Return float pictures of a pipeline, with or without a guest."""
    pipe = pipeline(name)
    arguments = family_of(pipe).arguments(pipe, requests(n), 0.5)
    if name in SCALE:
        arguments["guidance_scale"] = SCALE[name]
    arguments |= {"num_inference_steps": steps, "generator": generators(n), "output_type": "np", **changes}
    if feedback is None:
        return pipe(**arguments).images
    with feedback.attached():
        return pipe(**arguments).images


def brightness(clean: Tensor) -> Tensor:
    """A criterion with a gradient everywhere: a weighted mean of the picture."""
    weights = torch.linspace(-1, 1, clean[0].numel()).view(clean[0].shape)
    return (clean * weights).flatten(1).mean(dim=1)


def guest(
    name: str,
    kind: type[Feedback] = Feedback,
    n: int = 3,
    criterion: Callable[[Tensor], Tensor] = brightness,
    **options: Any,
) -> Feedback:
    pipe = pipeline(name)
    family = family_of(pipe)
    settings = GuidanceOptions(**{"every": 1, **options})
    return kind(settings, getattr(pipe, family.denoiser), pipe.scheduler, criterion, n, family.conditional)


@pytest.mark.parametrize(("name", "scheduler"), CASES)
def test_omega_zero_is_the_plain_pipeline_to_the_bit_and_more_raises_the_criterion(name: str, scheduler: str) -> None:
    _set_scheduler(pipeline(name), scheduler)

    def seeded(feedback: Feedback | None = None) -> np.ndarray:
        torch.manual_seed(5)  # DiT gives its scheduler no generator
        return run(name, feedback)

    plain, silent = seeded(), guest(name, omega=0, observe=True, mix=False)
    assert np.array_equal(seeded(silent), plain)
    assert np.array_equal(seeded(guest(name, omega=0)), plain)
    calls = len(pipeline(name).scheduler.timesteps)  # one more than the steps for PNDM
    assert [len(silent.trace), silent.taken.tolist()] == [calls, [0, 0, 0]]
    for rule, omega in (("normalised", 0.02), ("score", 0.5)):
        steered = guest(name, omega=omega, rule=rule, mix=False)
        assert not np.array_equal(seeded(steered), plain)
        assert [steered.taken.tolist(), steered.skipped.tolist()] == [[calls] * 3, [0, 0, 0]]
        assert (steered.trace[-1] > silent.trace[-1]).all()


class Probe(Feedback):
    """Looks instead of steering."""

    seen: list[tuple[Tensor, Tensor]]

    def steer(self, output: Tensor, timestep: Any, sample: Tensor) -> Moved:
        self.seen = [
            *getattr(self, "seen", []),
            (output, self._predict(timestep, sample.float())[:, : sample.shape[1]]),
        ]
        return output, sample, torch.zeros(len(sample))


@pytest.mark.parametrize("name", ["text", "xl", "sd3", "dit", "classes"])
def test_the_denoiser_is_asked_again_with_the_condition_only(name: str) -> None:
    _set_scheduler(pipeline(name), "flow" if name == "sd3" else "ddim")
    guided, single = guest(name, Probe), guest(name, Probe)
    run(name, guided, steps=1)
    run(name, single, steps=1, guidance_scale=1.0)  # no classifier-free guidance: the output is the conditional one
    torch.testing.assert_close(guided.seen[0][1], single.seen[0][0], atol=1e-5, rtol=1e-4)
    assert (guided.seen[0][0] - single.seen[0][0]).abs().max() > 1e-3


class Differences(Feedback):
    """Compares the gradient with finite differences along 20 directions, at every step."""

    worst = 0.0

    def steer(self, output: Tensor, timestep: Any, sample: Tensor) -> Moved:
        z = sample.detach().float()
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(timestep, leaf).sum(), leaf)
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            along = torch.randn(z.shape, generator=generator)
            h = 1e-2 * norms(z) / norms(along)
            with torch.no_grad():
                rise = self.value(timestep, z + h * along) - self.value(timestep, z - h * along)
            slope = (gradient * along).flatten(1).sum(1)
            scale = (norms(gradient) * norms(along)).flatten() / z[0].numel() ** 0.5
            self.worst = max(self.worst, float(((rise / (2 * h.flatten()) - slope).abs() / scale).max()))
        return output, sample, torch.zeros(len(sample))


@pytest.mark.parametrize(
    ("name", "scheduler", "mix"),
    [
        *(("unclip", "euler", True), ("dit", "dpm++", False), ("ddpm", "ddpm", True), ("text", "pndm", False)),
        *(("sd3", "flow", True), ("flux", "flow", False)),
    ],
)
def test_finite_differences_along_random_directions_match_the_gradient(name: str, scheduler: str, mix: bool) -> None:
    _set_scheduler(pipeline(name), scheduler)
    decode = decoder(pipeline(name))

    def criterion(clean: Tensor) -> Tensor:
        return brightness(decode(clean)).square() + brightness(decode(clean))

    feedback = guest(name, Differences, n=1, criterion=criterion, mix=mix)
    run(name, feedback, n=1, steps=2)
    assert 0 < feedback.worst < 1e-2


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ({"every": 5}, [0, 5, 10, 15, 20, 25]),
        ({"every": 10}, [0, 10, 20]),
        ({"every": 1, "start": 0.9}, [27, 28, 29]),
        ({"every": 5, "start": 0.2, "stop": 0.5}, [10]),
    ],
)
def test_feedback_acts_at_every_kth_step_inside_the_window(options: dict[str, Any], indices: list[int]) -> None:
    seen: list[int] = []

    class Noting(Feedback):
        def steer(self, output: Tensor, timestep: Any, sample: Tensor) -> Moved:
            seen.append(self._index - 1)
            return super().steer(output, timestep, sample)

    _set_scheduler(pipeline("classes"), "ddim")
    run("classes", guest("classes", Noting, n=1, **options), n=1, steps=30)
    assert seen == indices


@pytest.mark.parametrize("rule", ["normalised", "score"])
def test_only_the_score_form_feels_the_criterions_scale(rule: str) -> None:
    _set_scheduler(pipeline("text"), "ddim")
    one = run("text", guest("text", omega=0.02, rule=rule))
    ten = run("text", guest("text", omega=0.02, rule=rule, criterion=lambda x: 10 * brightness(x)))
    tenth = run("text", guest("text", omega=0.002, rule=rule, criterion=lambda x: 10 * brightness(x)))
    if rule == "normalised":
        np.testing.assert_allclose(ten, one, atol=1e-4)
    else:
        assert np.abs(ten - one).max() > 1e-4
        np.testing.assert_allclose(tenth, one, atol=1e-5)


@pytest.mark.parametrize("rule", ["normalised", "score"])
def test_a_step_is_of_each_sample_alone(rule: str) -> None:
    """A mate with a thousandfold gradient changes nothing for the others, to the bit."""
    _set_scheduler(pipeline("classes"), "ddim")

    def lopsided(x: Tensor) -> Tensor:
        return brightness(x) * torch.tensor([1.0, 1000.0, 1.0])

    calm = run("classes", guest("classes", omega=0.02, rule=rule))
    wild = run("classes", guest("classes", omega=0.02, rule=rule, criterion=lopsided))
    assert np.array_equal(calm[[0, 2]], wild[[0, 2]])


def test_a_ddim_that_clips_gains_too_and_is_the_score_form_where_nothing_is_clipped() -> None:
    """A smaller epsilon beside a clipped x0 would step against the gradient."""
    images = {}
    for name, settings in {
        "open": {"clip_sample": False},
        "wide": {"clip_sample": True, "clip_sample_range": 1e6},
    }.items():
        pipeline("classes").scheduler = ddim(**settings)
        images[name] = run("classes", guest("classes", omega=0.5, rule="score"))
    np.testing.assert_allclose(images["wide"], images["open"], atol=1e-5)
    pipeline("classes").scheduler = ddim(clip_sample=True, clip_sample_range=0.5, timestep_spacing="trailing")
    traces = {}
    for omega in (-0.5, 0.0, 0.5, 2.0):
        feedback = guest("classes", omega=omega, rule="score", observe=True)
        run("classes", feedback, steps=6)
        traces[omega] = torch.stack(feedback.trace)[1:]
    assert (traces[-0.5] < traces[0.0]).all()
    assert (traces[0.0] < traces[0.5]).all()
    assert (traces[0.5] < traces[2.0]).all()
    pipeline("classes").scheduler = ddim(clip_sample=True)


def test_the_normalised_step_has_the_length_it_says() -> None:
    _set_scheduler(pipeline("classes"), "ddim")
    lengths: list[Tensor] = []

    class Measuring(Feedback):
        def steer(self, output: Tensor, timestep: Any, sample: Tensor) -> Moved:
            moved = super().steer(output, timestep, sample)
            lengths.append((norms(moved[1] - sample) / norms(sample)).flatten())
            return moved

    run("classes", guest("classes", Measuring, omega=-0.03))
    torch.testing.assert_close(torch.stack(lengths), torch.full((3, 3), 0.03), atol=1e-6, rtol=1e-4)


def test_clipping_is_per_sample_and_bounds_the_gradient() -> None:
    _set_scheduler(pipeline("classes"), "dpm++")
    shifts: list[Tensor] = []

    class Measuring(Feedback):
        def steer(self, output: Tensor, timestep: Any, sample: Tensor) -> Moved:
            moved = super().steer(output, timestep, sample)
            shifts.append(norms(moved[0] - output).flatten())
            return moved

    def lopsided(x: Tensor) -> Tensor:
        return brightness(x) * torch.tensor([1e-6, 1.0, 1e6])

    run("classes", guest("classes", Measuring, omega=1.0, rule="score", criterion=lopsided, clip=1e-3), steps=1)
    scheduler = pipeline("classes").scheduler
    sigma = (1 - scheduler.alphas_cumprod[scheduler.timesteps[0]]) ** 0.5
    assert float(shifts[0][0]) < 1e-5
    torch.testing.assert_close(shifts[0][1:], (1e-3 * sigma).expand(2), atol=1e-7, rtol=1e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rule", ["normalised", "score"])
def test_a_step_that_is_not_finite_is_skipped_counted_and_harms_no_one(rule: str, bad: float) -> None:
    _set_scheduler(pipeline("classes"), "ddim")

    def broken(x: Tensor) -> Tensor:
        return brightness(x) * torch.tensor([1.0, bad, 1.0])

    feedback = guest("classes", omega=0.02, rule=rule, criterion=broken)
    found = run("classes", feedback)
    assert feedback.skipped.tolist() == [0, 3, 0]
    assert feedback.taken.tolist() == [3, 0, 3]
    assert torch.stack(feedback.trace)[:, 1].isnan().all()
    assert np.array_equal(found[1], run("classes")[1])
    assert np.array_equal(found[[0, 2]], run("classes", guest("classes", omega=0.02, rule=rule))[[0, 2]])


def test_a_criterion_that_explodes_leaves_finite_pictures() -> None:
    _set_scheduler(pipeline("classes"), "ddim")
    infinite = guest("classes", omega=1.0, criterion=lambda x: (brightness(x).abs() + 100).exp())
    assert np.array_equal(run("classes", infinite), run("classes"))
    assert infinite.skipped.tolist() == [3, 3, 3]
    steep = guest("classes", omega=1e10, rule="score", criterion=lambda x: brightness(x) * 1e35)
    assert np.array_equal(run("classes", steep), run("classes"))
    assert steep.skipped.tolist() == [3, 3, 3]
    bounded = guest("classes", omega=0.1, criterion=lambda x: brightness(x) * 1e30)
    np.testing.assert_allclose(run("classes", bounded), run("classes", guest("classes", omega=0.1)), atol=1e-3)
    assert bounded.taken.tolist() == [3, 3, 3]


@pytest.mark.parametrize("name", ["text", "dit"])
def test_checkpoints_keep_fewer_activations_and_the_same_gradient(name: str) -> None:
    _set_scheduler(pipeline(name), "ddim")
    decode = decoder(pipeline(name))
    kept = {}
    images = {}
    for checkpoint in (False, True):
        feedback = guest(name, omega=0.05, checkpoint=checkpoint, criterion=lambda z: brightness(decode(z)))
        total = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.nbytes
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            images[checkpoint] = run(name, feedback, steps=1)
        kept[checkpoint] = total
    np.testing.assert_allclose(images[True], images[False], atol=1e-6)
    assert kept[True] < kept[False]


def test_the_pipeline_is_left_as_it_was_also_after_an_error() -> None:
    pipe = pipeline("classes")
    _set_scheduler(pipe, "ddim")

    def failing(x: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run("classes", guest("classes", criterion=failing))
    assert "step" not in vars(pipe.scheduler)
    assert not pipe.unet._forward_pre_hooks


def test_pictures_are_rescaled_one_by_one_with_the_extrema_held() -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    both = pictures(x, "minmax")
    assert both.flatten(1).aminmax(dim=1)[0].tolist() == [0, 0]
    assert both.flatten(1).aminmax(dim=1)[1].tolist() == [1, 1]
    torch.testing.assert_close(both[:1], pictures(x[:1], "minmax"))
    (slope,) = torch.autograd.grad(both[0].sum(), x)
    torch.testing.assert_close(slope[0], (1 / (x[0].max() - x[0].min())).detach().expand(3, 4, 4))
    assert pictures(torch.ones(1, 3, 2, 2), "minmax").isfinite().all()
    assert pictures(3 * x, "clamp").aminmax() == (0, 1)


def test_dropout_of_the_image_embedding_is_a_samples_own_and_right_in_the_mean() -> None:
    pipe = pipeline("unclip")
    whole = image_embeds(pipe, requests(3), 0.0)
    some = image_embeds(pipe, requests(3), 0.5)
    dropped = some == 0
    torch.testing.assert_close(some[~dropped], 2 * whole[~dropped])
    assert 0 < dropped.float().mean() < 1
    torch.testing.assert_close(image_embeds(pipe, requests(2)[1:], 0.5)[0], some[1])
    assert not image_embeds(pipe, requests(1), 1.0).any()
    picture = requests(1)[0].condition
    many = image_embeds(pipe, [Request("", i, 0, 0, "", picture) for i in range(400)], 0.5)
    torch.testing.assert_close(many.mean(0), whole[0], atol=0.25, rtol=0.25)


@pytest.mark.parametrize("name", ["text", "xl", "sd3", "flux"])
def test_what_the_criterion_sees_is_what_the_pipeline_decodes(name: str) -> None:
    """The last samples of a pipeline, decoded as for the criterion, are its pictures."""
    pipe = pipeline(name)
    latents = torch.as_tensor(run(name, output_type="latent"))
    decoded = decoder(pipe)(latents) / 2 + 0.5
    np.testing.assert_allclose(decoded.clamp(0, 1).permute(0, 2, 3, 1).numpy(), run(name), atol=1e-5)


def test_a_step_of_pndm_is_not_undone_by_the_sample_it_keeps() -> None:
    """PNDM's second step starts from the first one's sample: what moved the sample in between must stay."""
    _set_scheduler(pipeline("text"), "pndm")

    class Pushing(Feedback):
        def steer(self, output: Tensor, timestep: Any, sample: Tensor) -> Moved:
            return output, sample + (0.1 if self._index == 2 else 0), torch.zeros(len(sample))

    plain, pushed = (run("text", guest("text", kind), output_type="latent") for kind in (Probe, Pushing))
    assert np.abs(pushed - plain).max() > 0.01


@pytest.mark.parametrize(
    ("name", "scheduler"), [("ddpm", "euler"), ("ddim", "ddpm"), ("ddpm", "pndm"), ("sd3", "ddim"), ("text", "flow")]
)
def test_a_scheduler_that_a_pipeline_cannot_use_is_refused(name: str, scheduler: str) -> None:
    with pytest.raises(UserError, match="cannot use"):
        _set_scheduler(FAMILIES[name](), scheduler)
    with pytest.raises(UserError, match="'heun' is unknown"):
        _set_scheduler(FAMILIES[name](), "heun")


@pytest.mark.parametrize(
    "options",
    [
        {"omega": float("nan")},
        {"omega": float("inf")},
        {"every": 0},
        {"start": 0.5, "stop": 0.5},
        {"clip": 1.0},
        {"k": 1},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GuidanceOptions(**options)


def test_every_family_names_a_part_of_its_pipeline() -> None:
    for name, make in {"text": text_to_image, "dit": dit, "classes": classes_in_pixels}.items():
        assert hasattr(make(), KNOWN[type(pipeline(name)).__name__].denoiser)
    assert ddim().config.prediction_type == "epsilon"
