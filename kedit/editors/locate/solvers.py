"""Solvers: the change of one MLP output matrix that makes keys give new values and leaves others alone.

All on float64 copies. K [f n] holds the edits' keys as columns, R [d n] what must be added to what they give, C [f f]
the second moment of ordinary keys (kedit.covariance.estimate). All but AlphaEdit need of C its inverse times K only: C
is decomposed once, and a batch then costs a system of n equations instead of f.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from kedit.common.errors import InputError
from kedit.common.options import Amount, Layer, PathText, Positive
from kedit.covariance.estimate import Projector, null_space, projector_in

log = logging.getLogger(__name__)
NOTHING: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys and residuals of a batch of facts in one layer, as columns."""

    average: Float[Tensor, "f n"]  # over the context templates
    prompt_key: Float[Tensor, "f n"]  # where the new value must come out: in the bare prompt, or the average itself


def rank_one(
    residual: Float[Tensor, "d 1"], prompt_key: Float[Tensor, "f 1"], direction: Float[Tensor, "f 1"]
) -> Float[Tensor, "d f"]:
    """(v - W k) uᵀ / (kᵀu): W k becomes v, along u only. ROME, Eq. 2 and App. A of arXiv 2202.05262."""
    unit = direction / direction.norm()
    return residual / (prompt_key.T @ unit) @ unit.T


def least_squares(
    residual: Float[Tensor, "d n"], keys: Float[Tensor, "f n"], whitened: Float[Tensor, "f n"]
) -> Float[Tensor, "d f"]:
    """R Kᵀ (λC + K Kᵀ)⁻¹ (MEMIT, Eq. 14 of arXiv 2210.07229) as R (I + Kᵀ(λC)⁻¹K)⁻¹ Kᵀ(λC)⁻¹; `whitened` = (λC)⁻¹ K."""
    gram = keys.T @ whitened
    return residual @ _solve(gram + torch.eye(len(gram)).to(gram), whitened.T)


def least_squares_after(
    residual: Float[Tensor, "d n"], keys: Float[Tensor, "f m"], whitened: Float[Tensor, "f m"]
) -> Float[Tensor, "d f"]:
    """R Kᵀ (λC + G Gᵀ + K Kᵀ)⁻¹ for the keys G of earlier edits ("previous keys" of the AlphaEdit authors' memit_seq);
    `keys` Q = [K, G], `whitened` = (λC)⁻¹ Q. It is R Eᵀ (I + Qᵀ(λC)⁻¹Q)⁻¹ Qᵀ(λC)⁻¹, E the columns of K."""
    gram = keys.T @ whitened
    system = gram + torch.eye(len(gram)).to(gram)
    return residual @ _solve(system, whitened.T)[: residual.shape[1]]


def with_columns(held: Float[Tensor, "f m"], more: Float[Tensor, "f n"], most: int) -> Float[Tensor, "f k"]:
    """Columns G with G Gᵀ that of both, in float32. Beyond `most` of them f columns stand for all: G Gᵀ is all that
    counts, so a solver's state does not grow with the number of edits."""
    both = torch.cat([held.to(more.device), more.float()], dim=1)
    if both.shape[1] <= most:
        return both
    return torch.linalg.qr(both.T.double(), mode="r").R.T.float().contiguous()


def equality(
    residual: Float[Tensor, "d n"], keys: Float[Tensor, "f n"], whitened: Float[Tensor, "f n"], ridge: float
) -> Float[Tensor, "d f"]:
    """R (Kᵀ C⁻¹ K + ridge · I)⁻¹ Kᵀ C⁻¹ with `whitened` = C⁻¹ K. EMMET, Eq. 10 of arXiv 2403.14236; the ridge is its
    code's."""
    gram = keys.T @ whitened
    return residual @ _solve(gram + ridge * torch.eye(len(gram)).to(gram), whitened.T)


def projected(
    residual: Float[Tensor, "d n"], keys: Float[Tensor, "f n"], earlier: Float[Tensor, "f m"], l2: float
) -> Float[Tensor, "d f"]:
    """Δ = Xᵀ with [P (K Kᵀ + G Gᵀ) + l2 · I] X = P K Rᵀ for the keys G of earlier edits: AlphaEdit, arXiv 2410.02355.

    `keys` and `earlier` are P K and P G already; then X = Q (l2 · I + QᵀQ)⁻¹ E Rᵀ with Q = [P K, P G], E the
    columns of K."""
    both = torch.cat([keys, earlier], dim=1)
    gram = both.T @ both
    system = gram + l2 * torch.eye(len(gram)).to(gram)
    chosen = torch.eye(len(gram), keys.shape[1]).to(gram)
    return residual @ (both @ _solve(system, chosen)).T


def _solve(system: Float[Tensor, "n n"], wanted: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """system⁻¹ · wanted. Raises FloatingPointError, so that the edit fails alone, if there is no inverse: two edits
    have the same key, and the method adds no ridge."""
    solution, failed = torch.linalg.solve_ex(system, wanted)
    if int(failed):
        raise FloatingPointError(f"the {len(system)} keys of these edits are linearly dependent")
    return solution


class Inverse:
    """C⁻¹ times something; C is decomposed at the first call. `tokens`: how many C is a mean over, if known."""

    def __init__(self, moment: Float[Tensor, "f f"], layer: int, tokens: int | None = None):
        self.moment, self.layer, self.tokens = moment, layer, tokens
        self._factor: Tensor | None = None
        if tokens is not None and tokens <= len(moment):
            self._cholesky(moment.double())  # said before the first edit if it has no inverse

    def times(self, keys: Float[Tensor, "f n"]) -> Float[Tensor, "f n"]:
        if self._factor is None:
            self._factor = self._cholesky(self.moment.to(keys))
        return torch.cholesky_solve(keys, self._factor)

    def _cholesky(self, moment: Float[Tensor, "f f"]) -> Float[Tensor, "f f"]:
        """The factor of C, or of C + 1e-6 of its mean diagonal if rounding, too few tokens, or neurons that never fire
        have left it not positive. Raises InputError if that is not positive either."""
        factor, failed = torch.linalg.cholesky_ex(moment)
        if int(failed):
            log.warning("%s: 1e-6 of its mean diagonal is added; gather more tokens", self._described())
            ridge = 1e-6 * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
            factor, failed = torch.linalg.cholesky_ex(moment + ridge)
        if int(failed):
            raise InputError(
                f"{self._described()}; give a corpus with more tokens in editor.statistics.corpus, and raise "
                "editor.statistics.tokens"
            )
        return factor

    def _described(self) -> str:
        read = "" if self.tokens is None else f"{self.tokens} tokens were read, "
        return (
            f"the second moment of layer {self.layer} has no inverse ({read}more than {len(self.moment)} are needed, "
            "its number of rows)"
        )


@dataclass(kw_only=True, eq=False)
class Solver:
    """How a layer's matrix changes for a batch of facts; `moments` are of the unedited model."""

    batched: ClassVar[bool] = True  # can it solve for several facts at once?
    needs_covariance: ClassVar[bool] = True
    several_layers: ClassVar[bool] = True  # can the change be spread over several layers?

    def fit(self, moments: Mapping[int, Float[Tensor, "f f"]], tokens: Mapping[int, int] = NOTHING) -> None:
        """`tokens`: how many tokens each layer's moment is a mean over, as far as that is known."""
        self.inverses = {layer: Inverse(moment, layer, tokens.get(layer)) for layer, moment in moments.items()}

    def read(self, widths: Mapping[int, int]) -> None:
        """Instead of `fit`, where no moments are needed: take what was given for layers with keys of these widths."""

    def change(self, layer: int, keys: Keys, residual: Float[Tensor, "d n"]) -> Float[Tensor, "d f"]:
        raise NotImplementedError

    def accumulate(self, layer: int, keys: Keys) -> None:
        """A batch is in the weights; these are its keys now. Asked only where `stateful`."""

    stateful: ClassVar[bool] = False

    def fit_report(self) -> Mapping[str, object]:
        """What `fit` found that a reader of the results wants to know."""
        return {}

    def reset(self) -> None:
        """Forget edits."""

    def state(self) -> dict[str, Tensor]:
        """What `learn` keeps."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from it."""


@dataclass(kw_only=True, eq=False)
class RankOne(Solver):
    """ROME, fact by fact. `covariance`: along C⁻¹ of the average key (the paper); otherwise along that key itself (as
    EasyEdit ships it)."""

    batched: ClassVar[bool] = False
    several_layers: ClassVar[bool] = False
    covariance: bool = True

    @property
    def needs_covariance(self) -> bool:  # type: ignore[override]
        return self.covariance

    def change(self, layer: int, keys: Keys, residual: Float[Tensor, "d n"]) -> Float[Tensor, "d f"]:
        along = self.inverses[layer].times(keys.average) if self.covariance else keys.average
        return rank_one(residual, keys.prompt_key, along)


@dataclass(kw_only=True, eq=False)
class KeepsKeys(Solver):
    """Holds the keys of earlier edits, of each layer as at most 2f columns."""

    _earlier: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def _keep(self, layer: int, ours: Float[Tensor, "f n"]) -> None:
        self._earlier[layer] = with_columns(self._earlier.get(layer, ours[:, :0]), ours, most=2 * len(ours))

    def reset(self) -> None:
        self._earlier = {}

    def state(self) -> dict[str, Tensor]:
        return {f"earlier.{layer}": keys.contiguous() for layer, keys in self._earlier.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._earlier = {int(name.partition(".")[2]): keys for name, keys in state.items()}


@dataclass(kw_only=True, eq=False)
class LeastSquares(KeepsKeys):
    """MEMIT and PMET; `weight` is λ: how many ordinary keys stand against the edits. `previous_keys`: so do the keys of
    earlier edits, which keeps long sequences alive."""

    weight: Positive
    previous_keys: bool = False

    @property
    def stateful(self) -> bool:  # type: ignore[override]
        return self.previous_keys

    def change(self, layer: int, keys: Keys, residual: Float[Tensor, "d n"]) -> Float[Tensor, "d f"]:
        if layer not in self._earlier:
            return least_squares(residual, keys.average, self.inverses[layer].times(keys.average) / self.weight)
        both = torch.cat([keys.average, self._earlier[layer].to(keys.average)], dim=1)
        return least_squares_after(residual, both, self.inverses[layer].times(both) / self.weight)

    def accumulate(self, layer: int, keys: Keys) -> None:
        self._keep(layer, keys.average)


@dataclass(kw_only=True, eq=False)
class Equality(Solver):
    """EMMET; C is scaled by `weight`."""

    weight: Positive
    ridge: Amount

    def change(self, layer: int, keys: Keys, residual: Float[Tensor, "d n"]) -> Float[Tensor, "d f"]:
        whitened = self.inverses[layer].times(keys.average) / self.weight
        return equality(residual, keys.average, whitened, self.ridge)


@dataclass(kw_only=True, eq=False)
class NullSpace(KeepsKeys):
    """AlphaEdit: only in directions that ordinary keys hardly use, and beside the keys of earlier edits.

    Directions whose singular value of C is below `threshold` (`relative`: to the largest one); or those that the
    projectors in `files` have, layer -> safetensors file. It keeps each edit's keys in the edited model, projected.
    """

    stateful: ClassVar[bool] = True
    l2: Amount
    threshold: Amount
    relative: bool = False
    files: Mapping[Layer, PathText] | None = None

    def fit(self, moments: Mapping[int, Float[Tensor, "f f"]], tokens: Mapping[int, int] = NOTHING) -> None:
        found = {layer: null_space(moment, self.threshold, self.relative) for layer, moment in moments.items()}
        self.projectors: dict[int, Projector] = found

    @property
    def needs_covariance(self) -> bool:  # type: ignore[override]
        return not self.files

    def read(self, widths: Mapping[int, int]) -> None:
        files = {int(layer): path for layer, path in (self.files or {}).items()}
        if missing := sorted(set(widths) - set(files)):
            raise InputError(f"editor.solver.files has no projector for layers {missing}; give one for each layer")
        self.projectors = {layer: projector_in(files[layer], width, layer) for layer, width in widths.items()}

    def fit_report(self) -> Mapping[str, object]:
        ranks = {str(layer): projector.rank for layer, projector in self.projectors.items()}
        return {"null_space_rank": ranks, "of": len(next(iter(self.projectors.values())).matrix)}

    def change(self, layer: int, keys: Keys, residual: Float[Tensor, "d n"]) -> Float[Tensor, "d f"]:
        ours = self._projected(layer, keys.average)
        earlier = self._earlier.get(layer, ours[:, :0]).to(ours)
        return projected(residual, ours, earlier, self.l2)

    def accumulate(self, layer: int, keys: Keys) -> None:
        self._keep(layer, self._projected(layer, keys.average).float())

    def _projected(self, layer: int, keys: Float[Tensor, "f n"]) -> Float[Tensor, "f n"]:
        projector = self.projectors[layer]
        if projector.matrix.device != keys.device:  # uploaded once
            self.projectors[layer] = projector = replace(projector, matrix=projector.matrix.to(keys.device))
        return projector.matrix.to(keys) @ keys
