"""Multiplications of one step, and with them the most that skipping can be worth. Attention's T² is left out."""

from dataclasses import dataclass

from kedit.lm import LM


@dataclass(frozen=True)
class Cost:
    """Parameters that a token meets: in a layer, in the MLP's output matrix, in the head."""

    layer: int
    matrix: int
    head: int
    n_layers: int

    @classmethod
    def of(cls, lm: LM, layer: int) -> "Cost":
        block = lm.model.get_submodule(lm.anatomy.block.format(layer))
        matrix = lm.model.get_submodule(lm.anatomy.mlp_out.format(layer)).weight.numel()
        head = lm.model.get_output_embeddings().weight.numel()
        return cls(sum(p.numel() for p in block.parameters()), matrix, head, lm.anatomy.n_layers)

    def forward(self, tokens: int, places: int, first: int = 0, matrix: bool = False) -> int:
        """From layer `first` on (`matrix`: of it only the output matrix), the head at so many places."""
        layers = (self.n_layers - first - matrix) * self.layer + matrix * self.matrix
        return tokens * layers + places * self.head

    def backward(self, tokens: int, places: int, first: int) -> int:
        """To the output matrix of layer `first`, and its own gradient."""
        return tokens * ((self.n_layers - first - 1) * self.layer + self.matrix) + places * self.head
