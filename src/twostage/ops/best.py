"""The best entries of each row, of a fixed number.

Letters: n rows, m entries of each, `top` results of each, padded.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


class Best(NamedTuple):
    """Places in a row; padded, where there are fewer, with any place and `valid` False."""

    index: Int[Tensor, "n top"]  # type: ignore[assignment]
    valid: Bool[Tensor, "n top"]


def best(scores: Float[Tensor, "n m"], among: Bool[Tensor, "n m"], *, top: int, fits: bool = False) -> Best:
    """The `top` highest scores `among` the entries of each row, best first; of equal scores the first.

    `fits` states that no row has more of them. Runtimes of exported programs then leave out the sorting, which takes
    them longer than suppression: they list all in the order of their places.
    """
    return Best(*torch.ops.twostage.best(scores, among, top, fits))


def _best(scores: Tensor, among: Tensor, top: int, fits: bool) -> tuple[Tensor, Tensor]:
    ranked = scores.masked_fill(~among, -torch.inf)
    index = ranked.sort(dim=1, descending=True, stable=True).indices[:, :top]
    index = pad(index, (0, max(0, top - scores.shape[1])))
    valid = torch.arange(top, device=scores.device) < among.sum(dim=1, keepdim=True)
    return index, valid


# One node of an exported program; everywhere else what it is made of.
torch.library.define("twostage::best", "(Tensor scores, Tensor among, SymInt top, bool fits) -> (Tensor, Tensor)")
torch.library.impl("twostage::best", "CompositeImplicitAutograd", _best)
