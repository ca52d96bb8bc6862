"""RoB against slow references, against the methods it is made of, and every trap of the sheet as a fact."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rob_teachers import KINDS, RESNET, VIT, Teachers, student, teachers
from slow_rob import slow_dinov2, slow_msn, slow_swav
from torch import Tensor
from two_view_batches import batch_of, plain_pixels

from granary.curation.errors import UserError
from granary.training.losses.self_distillation import dino_losses, entropies, soft_cross_entropy
from granary.training.method import Method, Moment
from granary.training.methods.dinov2 import DINOv2
from granary.training.methods.msn import MSN
from granary.training.methods.rob import RoB
from granary.training.methods.swav import SwAV
from granary.training.models.backbone import Backbone
from granary.training.models.training import load_training

NOW = Moment(2, 10, 0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    return teachers(tmp_path_factory.mktemp("teachers"))


def batch_for(name: str, count: int = 4) -> dict[str, Tensor]:
    """A batch as the loader gives it to the method of a teacher."""
    batch = batch_of(count, local=1 if name == "ibot" else 2)
    if KINDS[name].method == "dinov2":
        batch = {key.replace("image", "global"): value for key, value in batch.items()}
        batch |= {key: torch.zeros_like(value) + 0.9 for key, value in batch.items() if key.endswith("draws")}
    return batch


def slow(name: str, rob: RoB, batch: dict[str, Tensor]) -> Tensor:
    """The loss by loops, the pictures of the teacher normalised as its training normalised them."""
    base, teacher, theirs = rob.base, rob.teacher.method, rob.teacher.method.config
    shown = [
        plain_pixels(batch, theirs, view, kind) for kind in ("image", "global") if kind in batch for view in range(2)
    ]
    if isinstance(base, DINOv2):
        whole, local = base.pixels(batch)
        masked = base.draw_masks(len(whole), NOW, torch.device("cpu"))
        assert local is not None
        assert isinstance(teacher, DINOv2)
        return slow_dinov2(base, teacher, whole, torch.cat(shown), local, masked)
    small = [plain_pixels(batch, base.config, view, "local") for view in range(2)]
    large = [plain_pixels(batch, base.config, view) for view in range(2)]
    if isinstance(base, SwAV):
        assert isinstance(teacher, SwAV)
        return slow_swav(base, teacher, [*large, *small], shown)
    assert isinstance(base, MSN)
    assert isinstance(teacher, MSN)
    anchors = [base.projector(base.encoder(large[1], keep=base.kept(large[1], NOW)).cls)]
    anchors += [base.projector(base.encoder(view).cls) for view in small]
    return slow_msn(base, teacher, anchors, shown[0])


def check_gradients(fast: Method, slow: Method, atol: float = 3e-4) -> int:
    """Fail where gradients differ; returns how many parameters have one that is not 0."""
    count = 0
    for (name, ours), theirs in zip(fast.named_parameters(), slow.parameters(), strict=True):
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=atol, rtol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
        count += bool(gradients[0].any())
    return count


@pytest.mark.parametrize("name", KINDS)
def test_loss_and_gradients_equal_the_slow_reference(name: str, taught: Teachers) -> None:
    rob, batch = student(taught(name)), batch_for(name)
    twin = copy.deepcopy(rob)
    output = rob(batch, NOW)
    expected = slow(name, twin, batch)
    torch.testing.assert_close(output["loss"], expected, atol=2e-5, rtol=1e-5)
    output["loss"].backward()
    expected.backward()
    assert check_gradients(rob, twin) > 10
    assert all(p.grad is None for p in rob.teacher.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_rob_is_its_method_with_one_branch_replaced(name: str, taught: Teachers) -> None:
    """Where the teacher is the student's own target branch, loss and gradients are those of the method, bit for bit."""
    source, batch = load_training(taught(name)).train(), batch_for(name)
    rob = student(taught(name), source.config, keep_anticollapse=True)
    rob.base.load_state_dict(source.state_dict())
    source.options = rob.base.options  # type: ignore[assignment]
    ours, theirs = rob(batch, NOW), source(batch, NOW)
    assert {key: value for key, value in ours.items() if "kl" not in key}.keys() == theirs.keys()
    for key in theirs.keys() - {"features"}:
        assert torch.equal(ours[key], theirs[key]), key
    ours["loss"].backward()
    theirs["loss"].backward()
    assert check_gradients(rob.base, source, atol=0.0) > 10


@pytest.mark.parametrize("name", KINDS)
def test_targets_are_those_of_the_checkpoints_own_heads(name: str, taught: Teachers) -> None:
    """Trap: a new random head on the teacher's side. And a second pass says the same, whatever mode RoB is in."""
    rob, source = student(taught(name)), load_training(taught(name))
    pixels = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rest: tuple[object, ...] = ()
    if isinstance(rob.base, DINOv2):
        rest = (rob.base.draw_masks(8, NOW, torch.device("cpu")), 0.05)
    elif name == "swav":
        pixels = pixels.unflatten(0, (2, 4))
    rob.teacher.shown = lambda pixels, _: pixels  # type: ignore[method-assign]
    said = [flat(rob.train(mode).targets(pixels, *rest)) for mode in (True, False)]
    expected = flat(source.targets(pixels, *rest))  # type: ignore[operator]
    for once, again, theirs in zip(*said, expected, strict=True):
        assert torch.equal(once, again)
        assert torch.equal(once, theirs)
        assert not once.requires_grad


def flat(targets: Any) -> list[Tensor]:
    parts = targets if isinstance(targets, tuple) else (targets,)
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("name", KINDS)
def test_the_teacher_sees_large_views_alone_normalised_as_in_its_training(name: str, taught: Teachers) -> None:
    rob, batch = student(taught(name)), batch_for(name)
    seen: list[Tensor] = []
    backbone = next(module for module in rob.teacher.modules() if isinstance(module, Backbone))
    backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rob(batch, NOW)
    views = range(1 if name == "msn" else 2)
    kind = "global" if "global" in batch else "image"
    expected = torch.cat([plain_pixels(batch, rob.teacher.method.config, view, kind) for view in views])
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=1e-5)
    assert rob.teacher.method.config.mean != rob.config.mean


def test_a_teacher_sees_pictures_of_its_own_size(taught: Teachers) -> None:
    rob = student(taught("msn"), crop_size=8, local_size=4)
    shown = rob.teacher.shown(torch.randn(3, 3, 8, 8), rob.config)
    assert shown.shape == (3, 3, 16, 16)
    assert rob.views()["image"].side == 8
    assert student(taught("msn"), teacher_size=12).teacher.facts.side == 12


def test_a_training_may_be_named_as_one_of_the_hub(taught: Teachers) -> None:
    one, other = (student(f"{prefix}{taught('swav')}").state_dict() for prefix in ("", "hf:"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_only_the_target_branch_of_a_teacher_is_kept(taught: Teachers) -> None:
    kept = {
        name: {part.split(".")[2] for part in student(taught(name)).state_dict() if part.startswith("teacher.")}
        for name in ("dinov2", "ibot", "swav", "msn")
    }
    assert kept == {
        "dinov2": {"teacher", "teacher_heads"},
        "ibot": {"teacher", "teacher_heads", "centres"},
        "swav": {"encoder", "projector", "prototypes"},
        "msn": {"target", "target_projector", "prototypes"},
    }


def test_terms_against_collapse_are_left_out_unless_they_are_asked_for(taught: Teachers) -> None:
    dinov2, msn = (student(taught(name)).base for name in ("dinov2", "msn"))
    assert isinstance(dinov2, DINOv2)
    assert isinstance(msn, MSN)
    assert (dinov2.options.koleo, msn.options.me_max) == (0.0, 0.0)
    dinov2, msn = (student(taught(name), keep_anticollapse=True).base for name in ("dinov2", "msn"))
    assert (dinov2.options.koleo, msn.options.me_max) == (0.1, 1.0)  # type: ignore[union-attr]
    assert student(taught("msn"), me_max=0.5).base.options.me_max == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_the_stored_centre_balances_targets_and_moves_only_where_that_is_asked_for(name: str, taught: Teachers) -> None:
    still, moving = (student(taught(name), keep_anticollapse=keep) for keep in (False, True))
    batch = batch_for(name)
    source = load_training(taught(name)).get_submodule("centres")
    for rob, moves in ((still, False), (moving, True)):
        for step in range(2):
            rob(batch, Moment(step, 10, 0))  # of which the first is not taken: its loss was not finite, say
        rob.after_step(Moment(1, 10, 0))
        for kind in ("dino", "ibot") if name == "ibot" else ("dino",):
            centre, before = (centres.get_submodule(kind).value for centres in (rob.teacher.method.centres, source))
            assert before.any()
            assert torch.equal(centre, before) != moves
            assert rob.teacher.method.centres.get_submodule(kind).seen == []  # type: ignore[operator, union-attr]


def test_a_student_equal_to_its_teacher_has_no_divergence_and_no_gradient(taught: Teachers) -> None:
    """Softmax targets at the student's temperature, the same view on both sides, no centre: KL is 0."""
    for name, heat in (("dino", {"teacher_temperature": 0.1}), ("msn", {"sharpening": 1.0, "drop": 0.0})):
        source = load_training(taught(name))
        rob = student(taught(name), source.config, local_crops=0, **heat)
        with torch.no_grad():
            for ours, theirs in pairs_of(rob, name):
                ours.copy_(theirs.add_(0.3 * torch.randn_like(theirs)))  # small projections have large gradients
            for buffer in rob.teacher.buffers():
                buffer.zero_()  # the centre
        batch = {key: value[:, :1].repeat(1, 2, *[1] * (value.ndim - 2)) for key, value in batch_for(name).items()}
        output = rob(batch, NOW)
        torch.testing.assert_close(output["kl"], torch.tensor(0.0), atol=1e-6, rtol=0)
        output["loss"].backward()
        assert largest_gradient(rob) < 1e-5
        other = student(taught(name))
        output = other(batch_for(name), NOW)
        output["loss"].backward()
        assert float(output["kl"]) > 0.01
        assert largest_gradient(other) > 0.01


def largest_gradient(method: Method) -> float:
    return max(float(p.grad.abs().max()) for p in method.parameters() if p.grad is not None)


def pairs_of(rob: RoB, name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter of the student's branch beside that of the teacher."""
    parts = {"student": "teacher", "student_heads": "teacher_heads"}
    for ours, theirs in (parts if name == "dino" else {"encoder": "target", "projector": "target_projector"}).items():
        modules = rob.base.get_submodule(ours), rob.teacher.method.get_submodule(theirs)
        yield from zip(*(module.parameters() for module in modules), strict=True)


def test_free_logits_descend_to_the_targets_at_the_ratio_of_the_temperatures() -> None:
    """Trap: temperatures swapped. The least loss is at z_s = z_t tau_s / tau_t + const, where softmax is the target."""
    torch.manual_seed(0)
    teacher, hot, cold = 0.05 * torch.randn(3, 5), 0.1, 0.04
    targets = (teacher / cold).softmax(dim=1)
    logits = torch.zeros(3, 5, requires_grad=True)
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, targets, hot).sum(), logits)
        logits.data.sub_(0.01 * gradient)
    found = logits.detach()
    torch.testing.assert_close((found / hot).softmax(dim=1), targets, atol=1e-4, rtol=1e-3)
    apart = found - teacher * hot / cold
    torch.testing.assert_close(apart, apart.mean(dim=1, keepdim=True).expand(3, 5), atol=1e-3, rtol=0)
    divergence = soft_cross_entropy(found, targets, hot) - entropies(targets)
    torch.testing.assert_close(divergence, torch.zeros(3), atol=1e-6, rtol=0)


def test_the_best_constant_student_has_the_entropy_of_the_mean_target() -> None:
    """So collapse is not the least loss unless the teacher itself says the same of all pictures."""
    torch.manual_seed(0)
    targets = (3 * torch.randn(2, 50, 6)).softmax(dim=2)
    best = targets.mean(dim=(0, 1)).log().expand(2, 50, 6)
    loss = sum(dino_losses(best, best[:0], targets, 1.0))
    torch.testing.assert_close(loss, entropies(targets.mean(dim=(0, 1))))
    assert loss > entropies(targets).mean() + 0.1
    for _ in range(5):
        other = (best + 0.3 * torch.randn(6)).contiguous()
        assert sum(dino_losses(other, other[:0], targets, 1.0)) > loss


def test_divergence_is_never_below_zero(taught: Teachers) -> None:
    for name in KINDS:
        output = student(taught(name))(batch_for(name), NOW)
        assert all(float(output[key]) >= -1e-6 for key in ("kl", "ibot_kl") if key in output), name
        assert ("ibot_kl" in output) == (name in ("dinov2", "ibot"))


@pytest.mark.parametrize("name", KINDS)
def test_prototypes_are_copied_kept_or_drawn_anew(name: str, taught: Teachers) -> None:
    given = dict(load_training(taught(name)).named_parameters())
    for how in ("copy_trainable", "copy_frozen", "fresh"):
        rob = student(taught(name), prototypes=how)
        trained = {id(p) for group in rob.parameter_groups() for p in group.params}
        assert trained == {id(p) for p in rob.parameters() if p.requires_grad}
        ours = {
            part: p
            for part, p in rob.base.named_parameters()
            if part.startswith(("student_heads", "prototypes")) and ("last_layer" in part or "prototypes" in part)
        }
        assert ours
        for part, parameter in ours.items():
            fixed = part.endswith("original0") and name in ("dino", "ibot")  # lengths that are 1 and stay so
            same = torch.equal(parameter, given[part.replace("student_heads", "teacher_heads")])
            assert same == (how != "fresh" or fixed)
            assert (id(parameter) in trained) == (how != "copy_frozen" and not fixed)


def test_what_does_not_fit_is_a_sentence(taught: Teachers) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"patch_prototypes": 9}, "the teacher has 12 prototypes where the student has 9"),
        (
            {"bottleneck": 5},
            "options.prototypes: copy_trainable is not right: those of the student have width 5, the te",
        ),
        (
            {"global_size": 8, "local_size": 4},
            r"options.teacher_size: 16 is not right: a view has 2 x 2 patches .* give 8",
        ),
        (
            {"teacher_size": 10},
            "options.teacher_size: 10 is not right: it must be a multiple of the teacher's patch_size, 4",
        ),
        ({"targets": "centring"}, "options.targets: centring is not right: the teacher has no centre"),
        ({"crop_scale": [0, 1]}, "options.crop_scale: there is no such key"),
        ({"koleo": -1}, "options.koleo: -1 is not right"),
    ]
    for options, sentence in wrong:
        with pytest.raises(UserError, match=sentence):
            student(taught("dinov2"), **options)
    student(taught("dinov2"), global_size=8, local_size=4, teacher_size=8)
    student(taught("dinov2"), bottleneck=5, prototypes="fresh")
    with pytest.raises(UserError, match=r"options.ibot: 1.0 is not right: the teacher has learned nothing of patches"):
        student(taught("dino"), ibot=1.0)
    with pytest.raises(UserError, match=r"options.ibot: 1.0 is not right: only a vit has patches to mask; give 0"):
        student(taught("dinov2"), RESNET)
    with pytest.raises(UserError, match=r"model.kind: resnet is not right: msn trains vit alone"):
        student(taught("msn"), RESNET)
    with pytest.raises(UserError, match="/nowhere is neither"):
        student("/nowhere")
    with pytest.raises(UserError, match="has no heads that RoB knows; give a training of dinov2, swav, msn, or take"):
        student("random:tiny?img_size=16")
    assert VIT.mask_token is False
