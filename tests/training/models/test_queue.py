"""The queue of the latest rows: what is in it, what is replaced, which row is the nearest."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from granary.curation.errors import UserError
from granary.training.method import Moment
from granary.training.models.queue import Queue, check_queue

NOW = Moment(0, 10, 0)


def queue(size: int = 5) -> Queue:
    torch.manual_seed(0)
    return Queue(size, 3)


def test_it_begins_with_random_unit_rows_that_the_seed_decides() -> None:
    one, two = queue(1000), queue(1000)
    assert torch.equal(one.rows, two.rows)
    torch.testing.assert_close(one.rows.norm(dim=1), torch.ones(1000))
    assert one.rows.mean(dim=0).norm() < 0.1


def test_the_oldest_rows_are_replaced_in_turn() -> None:
    model, latest = queue(), [*queue().rows]  # the oldest first
    for step in range(6):
        rows = torch.randn(2, 3) * 4
        model.add(rows, Moment(step, 10, 0))
        model.follow()
        latest = [*latest, *normalize(rows, dim=1)][-5:]
        order = (int(model.place) + torch.arange(5)) % 5
        torch.testing.assert_close(model.rows[order], torch.stack(latest))
    assert set(model.state_dict()) == {"rows", "place"}


def test_nothing_is_in_it_before_the_step_is_taken_and_what_was_not_taken_is_dropped() -> None:
    model, before = queue(), queue().rows
    parts = torch.randn(3, 2, 3)
    model.add(parts[0], NOW)  # of a step that is not taken
    assert torch.equal(model.rows, before)
    model.add(parts[1], NOW)
    model.add(parts[2], NOW._replace(part=1))
    model.follow()
    torch.testing.assert_close(model.rows, torch.cat([normalize(parts[1:].flatten(0, 1), dim=1), before[4:]]))


def test_the_nearest_row_has_the_largest_cosine() -> None:
    model, rows = queue(40), torch.randn(7, 3) * 9
    cosines = torch.stack([torch.nn.functional.cosine_similarity(row[None], model.rows) for row in rows])
    assert torch.equal(model.nearest(rows), model.rows[cosines.argmax(dim=1)])
    rows.requires_grad_()
    assert not model.nearest(rows).requires_grad


def test_a_queue_smaller_than_a_batch_is_refused() -> None:
    check_queue(8, 8)
    with pytest.raises(UserError, match=r"options\.queue: 7 is not right: it must hold the 8 pictures of a batch"):
        check_queue(7, 8)
