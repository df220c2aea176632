"""What fits to one network have found out, so that the next one does not work it out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from convsurgeon.fit.lockstep import on_disk, page_out
from convsurgeon.fit.samples import Positions, at, positions
from convsurgeon.forms.leastsquares import Parts

JUDGED = 10
"""Every tenth sample of a site is not fitted to but judges the fit."""

Starts = dict[tuple[str, str], list[Parts]]
"""(site, form's label) -> the factors by group of the last fit, which the next one begins with."""


@dataclass(frozen=True)
class Places:
    """Positions of a site's output that were drawn at random in every batch, those that judge a fit at the end.

    Args:
        of_batches: the positions, those to fit to first.
        fitted_to: how many of each batch are fitted to.
    """

    of_batches: Sequence[Positions]
    fitted_to: Sequence[int]

    @staticmethod
    def draw(values: Sequence[Tensor], count: int, generators: Sequence[torch.Generator]) -> Places:
        """Return `count` positions of every image of some batches."""
        drawn, fitted_to = [], []
        for value, generator in zip(values, generators, strict=True):
            where = positions(value.shape, count, generator)
            judging = torch.arange(len(where[0]), device="cpu") % JUDGED == 0
            order = judging.to(torch.uint8).argsort(stable=True)
            drawn.append((where[0][order], where[1][order], where[2][order]))
            fitted_to.append(len(judging) - int(judging.sum()))
        return Places(drawn, fitted_to)

    def rows(self, values: Sequence[Tensor], take: Callable[[Tensor, Positions], Tensor] = at) -> Tensor:
        """Return what `take` finds there: the rows of all batches to fit to, then all those that judge."""
        found: Tensor | None = None
        first, last = 0, sum(len(where[0]) for where in self.of_batches)
        for value, where, fitted_to in zip(values, self.of_batches, self.fitted_to, strict=True):
            one = take(value, where)
            found = one.new_empty(last, *one.shape[1:]) if found is None else found
            judging = len(one) - fitted_to
            found[first : first + fitted_to], found[last - judging : last] = one[:fitted_to], one[fitted_to:]
            first, last = first + fitted_to, last - judging
            page_out(value)
        assert found is not None
        return found


@dataclass(frozen=True)
class Answers:
    """What the original computes at some places.

    Args:
        places: of a site's output.
        targets: the site's output, one row a place.
        shortcut: the value that is added to it there; None where there is none.
    """

    places: Places
    targets: Tensor
    shortcut: Tensor | None

    def kept(self) -> Answers:
        """Return the same, large ones on disk."""
        return Answers(self.places, on_disk(self.targets), on_disk(self.shortcut))


@dataclass
class Known:
    """What fits to one network and its images have found out; every fit adds to it.

    Args:
        gradients: second moments of the gradients at every site, see `sensitivity`.
        starts: the factors of earlier fits.
        answers: what the original computes, by the number of images, the place of the call in the graph, and how many
            positions of an image were drawn.
    """

    gradients: dict[str, Tensor] = field(default_factory=dict)
    starts: Starts = field(default_factory=dict)
    answers: dict[tuple[int, int, int], Answers] = field(default_factory=dict)
