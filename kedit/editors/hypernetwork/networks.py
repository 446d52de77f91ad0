"""What maps an edit's gradients to its change of the matrices; MEND's network (Mitchell et al. 2022, §3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kedit.common.options import Amount, CountOrNone, Positive, Rank
from kedit.editors.hypernetwork.normaliser import Normaliser
from kedit.editors.hypernetwork.outer_products import Gradients, OuterProducts, joined
from kedit.lm.matrices import widths

if TYPE_CHECKING:
    from kedit.lm.model import LM

Sign = Literal["descent", "released"]


class UpdateNetwork(nn.Module):
    """Learnt. Maps the gradients of edits to pseudo-gradients, one step along which is the edit."""

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters and their learning rates, as torch's optimisers take them."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def observe(self, gradients: Sequence[Gradients]) -> None:
        """Fold the gradients of training edits into what is known of them; on every process, also without any."""

    def forward(self, gradients: Gradients) -> dict[str, OuterProducts]:
        """The pseudo-gradient of each matrix."""
        raise NotImplementedError

    def rate(self, module: str) -> Float[Tensor, ""]:
        """How far the step goes, against the pseudo-gradient."""
        raise NotImplementedError


class NetworkOptions:
    """What a network is like, before the model is known that it is for."""

    def build(self, lm: "LM", modules: Sequence[str]) -> UpdateNetwork:
        """A network for these matrices, not trained yet; random numbers are drawn."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Mend(NetworkOptions):
    """MEND: for each shape of matrix one network over a row's input and output gradient, side by side, normalised;
    `blocks` residual blocks of rank `rank` (0: the identity), whose scale and shift are each matrix's own; and a rate
    for each matrix, learnt from `rate` on with its own learning rate `rate_lr`.

    `sign` says how rates begin: "descent", along which the step lowers the loss (the paper's equation), or "released",
    whose code adds rate · gradient with a positive rate.
    """

    rank: Rank
    blocks: CountOrNone = 2
    normalise: bool = True
    rate: Positive = 1e-4
    rate_lr: Amount = 1e-4
    sign: Sign = "descent"

    def build(self, lm: "LM", modules: Sequence[str]) -> "MendNetwork":
        return MendNetwork(self, {name: widths(lm, name) for name in modules}).to(lm.device)


class MendNetwork(UpdateNetwork):
    """See Mend."""

    def __init__(self, options: Mend, shapes: Mapping[str, tuple[int, int]]):
        super().__init__()
        self.options, self.shapes = options, dict(shapes)
        sharing: dict[str, list[str]] = {}
        for name, (i, o) in shapes.items():
            sharing.setdefault(f"{i}x{o}", []).append(name)
        self.sharing = sharing  # which matrices have one network, in the order of their scales and shifts
        self.networks = nn.ModuleDict(
            {key: _SharedNetwork(options, len(of), *shapes[of[0]]) for key, of in sharing.items()}
        )
        start = options.rate if options.sign == "descent" else -options.rate
        self.rates = nn.Parameter(torch.full((len(shapes),), start))

    def groups(self, lr: float) -> list[dict[str, Any]]:
        groups = [{"params": list(self.networks.parameters()), "lr": lr}] if self.options.blocks else []
        return [*groups, {"params": [self.rates], "lr": self.options.rate_lr}]

    def observe(self, gradients: Sequence[Gradients]) -> None:
        if not self.options.normalise:
            return
        rows = joined(gradients)
        for key, names in self.sharing.items():
            mine = [torch.cat(rows[name], -1) for name in names if name in rows]
            width = sum(self.shapes[names[0]])
            self._normaliser(key).observe(torch.cat(mine) if mine else self.rates.new_zeros(0, width))

    def forward(self, gradients: Gradients) -> dict[str, OuterProducts]:
        found: dict[str, OuterProducts] = {}
        for key, names in self.sharing.items():
            products = [gradients.factors[name] for name in names]
            sizes = [len(one.edit) for one in products]
            rows = torch.cat([torch.cat([one.inputs, one.outputs], -1) for one in products])
            which = torch.repeat_interleave(
                torch.arange(len(names), device=rows.device), torch.tensor(sizes, device=rows.device)
            )
            parts = self.networks[key](rows, which).split(sizes)
            i = products[0].inputs.shape[-1]
            found |= {
                name: OuterProducts(part[:, :i], part[:, i:], one.edit)
                for name, one, part in zip(names, products, parts, strict=True)
            }
        return {name: found[name] for name in self.shapes}

    def _normaliser(self, key: str) -> Normaliser:
        network = self.networks[key]
        assert isinstance(network, _SharedNetwork)
        return network.normaliser

    def rate(self, module: str) -> Float[Tensor, ""]:
        return self.rates[list(self.shapes).index(module)]


class _SharedNetwork(nn.Module):
    """Normaliser and residual blocks of all matrices of one shape."""

    def __init__(self, options: Mend, n_matrices: int, i: int, o: int):
        super().__init__()
        self.normaliser = Normaliser(i + o)
        self.blocks = nn.ModuleList(ResidualBlock(i + o, options.rank, n_matrices) for _ in range(options.blocks))

    def forward(self, rows: Float[Tensor, "r w"], which: Int[Tensor, " r"]) -> Float[Tensor, "r w"]:
        """What happens inside a block is computed again in the backward pass: kept, it would be the largest part of a
        training's memory after the model."""
        rows = self.normaliser(rows)
        for block in self.blocks:
            rows = checkpoint(block, rows, which, use_reentrant=False, preserve_rng_state=False)
        return rows


class ResidualBlock(nn.Module):
    """x + max(0, s_m ∘ (U V x + b) + t_m), with each matrix's own scale s_m and shift t_m; U, b, t begin at 0, s at 1,
    V normally distributed, so that it begins as the identity (MEND, Eq. 3a, 3b; the released IDMLP)."""

    def __init__(self, width: int, rank: int, n_matrices: int):
        super().__init__()
        rank = min(rank, width)
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.down = nn.Parameter(torch.randn(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(n_matrices, width))
        self.shift = nn.Parameter(torch.zeros(n_matrices, width))

    def forward(self, rows: Float[Tensor, "r w"], which: Int[Tensor, " r"]) -> Float[Tensor, "r w"]:
        mapped = rows @ self.down.T @ self.up.T + self.bias
        # not relu, whose gradient at 0 is 0: everything is 0 at first
        return rows + (mapped * self.scale[which] + self.shift[which]).clamp(min=0)


class Sum:
    """One step along the pseudo-gradients, which are summed over rows: ΔW = -rate Σ_r outputs_r inputs_rᵀ."""

    def __call__(self, gradient: OuterProducts, pseudo: OuterProducts, rate: Float[Tensor, ""]) -> OuterProducts:
        """The change of one matrix, from its gradient, the pseudo-gradient and the rate."""
        return pseudo.times(-rate)
