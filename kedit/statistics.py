"""Second moments E[k kᵀ] of what enters an MLP's output matrix, over ordinary text: what locate-then-edit methods protect
(ROME's C, Eq. 2 of arXiv 2202.05262; MEMIT's C₀, Eq. 14 of arXiv 2210.07229), and the directions that text does not use
(AlphaEdit's null space, Eq. 5-7 of arXiv 2410.02355)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.errors import InputError
from kedit.lm import LM


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`tokens` tokens of `corpus` (wikipedia, world, or a file: see kedit.corpora), read in windows of `window` tokens;
    or `files`, layer -> safetensors file with that layer's second moment."""

    corpus: str | None = None
    tokens: int = 0
    files: Mapping[int, str] | None = None
    window: int = 512

    def second_moment(self, lm: LM, layers: Sequence[int]) -> dict[int, Float[Tensor, "f f"]]:
        """E[k kᵀ], float32 on the CPU, of what enters the MLP's output matrix of each of these layers of the pristine
        model. Built once for each model, layer, corpus and budget; one pass makes all that are missing."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Projector:
    """P = U₀U₀ᵀ, onto the `rank` directions that keys hardly use."""

    matrix: Float[Tensor, "f f"]
    rank: int


def null_space(moment: Float[Tensor, "f f"], threshold: float, relative: bool = False) -> Projector:
    """Onto the singular vectors of a second moment whose singular value is below `threshold` (AlphaEdit: 0.02,
    absolute), or below `threshold` times the largest. Raises InputError where these are none or all."""
    values, vectors = torch.linalg.eigh(moment.double())  # symmetric and positive: its singular values and vectors
    limit = threshold * float(values[-1]) if relative else threshold
    rank = int((values < limit).sum())
    if rank in (0, len(values)):
        what = "none" if rank == 0 else "all"
        raise InputError(
            f"null-space threshold {threshold:g}{' of the largest' if relative else ''}: {what} of the {len(values)} "
            f"singular values ({float(values[0]):.2g} to {float(values[-1]):.2g}) are below it; choose one between them"
        )
    below = vectors[:, :rank]
    return Projector((below @ below.T).float(), rank)
