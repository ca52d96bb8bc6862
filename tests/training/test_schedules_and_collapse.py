"""Facts about schedules and about what the collapse alarm measures."""

from __future__ import annotations

import math

import pytest
import torch

from granary.training.evaluation.collapse import (
    effective_rank,
    measure,
    rank_me,
    relative_std,
    symptoms,
    teacher_entropy,
)
from granary.training.recipe import Alarm
from granary.training.schedules import cosine, linear, warmed_cosine


def test_cosine_has_its_ends_middle_and_quarter() -> None:
    assert [cosine(0.994, 1.0, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.994, 0.997, 1.0])
    assert cosine(0.04, 0.4, 0.25) == pytest.approx(0.0927, abs=5e-5)  # I-JEPA's weight decay; linear would be 0.13
    assert linear(0.04, 0.4, 0.25) == pytest.approx(0.13)
    assert linear(0.996, 1.0, 2.0) == 1.0


def test_warmup_is_a_line_then_a_cosine() -> None:
    rates = [warmed_cosine(1e-4, 1e-3, 1e-6, step, 10, 110) for step in range(111)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[5] == pytest.approx(5.5e-4)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-6) / 2)
    assert rates[110] == pytest.approx(1e-6)
    assert rates[10] == max(rates)


def test_rank_me_has_its_closed_forms() -> None:
    assert rank_me(torch.eye(32)) == pytest.approx(32, rel=1e-3)
    assert rank_me(torch.outer(torch.randn(20), torch.randn(8))) == pytest.approx(1, abs=1e-3)
    assert rank_me(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(2.828427, rel=1e-4)
    torch.manual_seed(0)
    assert rank_me(torch.randn(2048, 512)) == pytest.approx(495, abs=3)


def test_a_common_mean_hides_from_the_effective_rank() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 16)
    shifted = x + 100 * torch.randn(16)
    assert rank_me(shifted) < 2
    assert effective_rank(shifted) == pytest.approx(effective_rank(x), rel=1e-3)
    assert effective_rank(x) > 15


def test_deviation_is_relative() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 8)
    assert relative_std(x) == pytest.approx(1, abs=0.03)
    assert relative_std(1000 * x) == pytest.approx(relative_std(x), rel=1e-5)
    assert relative_std(torch.ones(10, 4)) == 0


def test_teacher_entropies() -> None:
    uniform, one = torch.full((6, 8), 1 / 8), torch.eye(8)[:1].expand(6, -1)
    assert teacher_entropy(uniform) == pytest.approx((1, 1))
    assert teacher_entropy(one) == pytest.approx((0, 0), abs=1e-6)
    assert teacher_entropy(torch.eye(8)) == pytest.approx((0, 1), abs=1e-6)


def test_the_alarm_sees_each_kind_of_collapse_and_not_health() -> None:
    torch.manual_seed(0)
    healthy, sharp = torch.randn(64, 16), torch.eye(32)[torch.arange(64) % 32]
    assert symptoms(measure(healthy, sharp), Alarm()) == {}
    assert set(symptoms(measure(healthy, torch.full((64, 32), 1 / 32)), Alarm())) == {"uniform"}
    assert set(symptoms(measure(healthy, sharp[:1].expand(64, -1)), Alarm())) == {"same answer"}
    assert set(symptoms(measure(5 + 1e-3 * healthy), Alarm())) == {"std"}
    line = torch.outer(torch.randn(64), torch.randn(16))
    assert set(symptoms(measure(line), Alarm())) == {"rank"}
    assert symptoms(measure(healthy, projections=healthy), Alarm()) == {}
    assert set(symptoms(measure(healthy, projections=5 + healthy / 4), Alarm())) == {"projections"}
    broken = healthy.clone()
    broken[3, 4] = math.inf
    assert symptoms(measure(broken), Alarm()) == {"not finite": "features are not finite"}


def test_the_std_of_projections_is_that_on_the_sphere() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4000, 8)
    assert measure(rows, projections=rows)["projection_std"] == pytest.approx(1, abs=0.01)
    lengths = torch.rand(4000, 1)
    assert measure(rows, projections=lengths * torch.ones(8))["projection_std"] == pytest.approx(0, abs=1e-6)
