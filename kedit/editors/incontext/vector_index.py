"""The nearest of many unit vectors."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kedit.common.errors import InputError

SCORES = 2**24  # that are held at a time


class Index:
    """Vectors in the order in which they came, and those with the largest inner product with a query.

    Exact, by a plain matrix product; from `approximate_from` vectors on by FAISS's HNSW graph instead (null: never).
    """

    def __init__(self, approximate_from: int | None = None):
        self.approximate_from = approximate_from
        self.clear()

    def clear(self) -> None:
        self._room = torch.empty(0, 0)  # doubles when it is full
        self._size = 0
        self._graph: Any = None

    @property
    def vectors(self) -> Float[Tensor, "n d"]:
        return self._room[: self._size]

    def add(self, vectors: Float[Tensor, "m d"]) -> None:
        new, needed = vectors.detach().float().cpu(), self._size + len(vectors)
        if needed > len(self._room):
            room = torch.empty(max(needed, 2 * self._size), new.shape[1])
            room[: self._size] = self.vectors.view(self._size, new.shape[1])
            self._room = room
        self._room[self._size : needed] = new
        self._size = needed
        if self._graph is not None:
            self._graph.add(new.numpy())

    def nearest(self, queries: Float[Tensor, "q d"], k: int) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
        """Inner products and places of the k nearest, fewer where there are fewer, the best first."""
        queries, k = queries.float().cpu(), min(k, self._size)
        if self.approximate_from is not None and self._size >= self.approximate_from:
            products, places = self._searchable().search(queries.numpy(), k)
            return torch.from_numpy(products), torch.from_numpy(places)
        parts = [(part @ self.vectors.T).topk(k) for part in queries.split(max(1, SCORES // max(1, self._size)))]
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

    def _searchable(self) -> Any:
        if self._graph is None:
            try:
                import faiss
            except ImportError as error:
                raise InputError(
                    f"editor.memory.approximate_from={self.approximate_from} needs FAISS: pip install 'kedit[faiss]', "
                    "or set it to null for exact search"
                ) from error
            self._graph = faiss.IndexHNSWFlat(self.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
            self._graph.add(self.vectors.numpy())
        return self._graph
