"""Models that answer instructions about one or several pictures by texts, boxes and masks: `Instructed`.

Shapes: N instructions, n pictures of each at most, S the side of a picture.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

from torch import Tensor, nn

from granary.training.data.instructions import Coding, Form


class Instructed(nn.Module, abc.ABC):
    """Pictures and a question -> an answer, in the form that is asked for."""

    @property
    @abc.abstractmethod
    def coding(self) -> Coding:
        """How boxes and masks are written."""

    @property
    @abc.abstractmethod
    def side(self) -> int:
        """S."""

    @property
    @abc.abstractmethod
    def most(self) -> int:
        """Pictures of an instruction at most."""

    @abc.abstractmethod
    def answers(
        self,
        pictures: Tensor,
        counts: Sequence[int],
        questions: Sequence[str],
        forms: Sequence[Form],
        free: bool = False,
    ) -> list[str]:
        """Return the likeliest token after another, as text.

        Args:
            pictures: (N, n, S, S, 3) uint8 on the model's device, of `pasted_views`.
            counts: how many pictures each has.
            questions: one for each.
            forms: of the answers.
            free: take any token, in the place of those that the form allows.
        """
