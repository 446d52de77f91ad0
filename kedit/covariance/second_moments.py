"""Sums of k kᵀ over a corpus: one pass for any number of layers, in constant memory, continued when it was killed.

Products are summed in float32 over a part of the corpus and the parts in float64. Sums of float32 alone would be off by
about 1e-5 of the largest singular value after the papers' 10⁸ tokens, and AlphaEdit reads the smallest ones; adding
parts in float64 costs one addition per 2¹⁶ tokens, and what is left is the rounding of a single float32 product.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kedit.common.errors import InputError
from kedit.common.progress import progress
from kedit.covariance.corpora import Stream
from kedit.lm import LM

log = logging.getLogger(__name__)

PART = 2**16  # tokens that are sorted by length, and summed in float32, together
STACK = 2048  # keys that are multiplied at a time
BLOCKS = 8  # blocks of rows: only the part right of the diagonal of a symmetric product is computed, 9/16 of it
TOGETHER = 2**15  # characters that are tokenised at a time
SAVE_S = 300.0  # at most so many seconds, and a part, are done again after a kill


@dataclass(frozen=True)
class Read:
    """How much of a corpus has been read."""

    documents: int = 0
    tokens: int = 0
    text: str = ""  # hash of these documents

    def then(self, documents: Sequence[str], tokens: int) -> "Read":
        text = self.text
        for document in documents:
            text = sha256((text + document).encode()).hexdigest()
        return Read(self.documents + len(documents), self.tokens + tokens, text)


class Sums:
    """Σ k kᵀ of each layer, above the diagonal, on the device of the keys."""

    def __init__(self) -> None:
        self.total: dict[int, Float[Tensor, "f f"]] = {}  # float64
        self._part: dict[int, Float[Tensor, "f f"]] = {}  # float32
        self._held: dict[int, list[Float[Tensor, "t f"]]] = {}
        self._rows = 0

    def add(self, keys: Mapping[int, Float[Tensor, "t f"]]) -> None:
        for layer, rows in keys.items():
            self._held.setdefault(layer, []).append(rows)
        self._rows += len(next(iter(keys.values())))
        if self._rows >= STACK:
            self._multiply()

    def _multiply(self) -> None:
        for layer, held in self._held.items():
            keys = (held[0] if len(held) == 1 else torch.cat(held)).float()
            width = keys.shape[1]
            part = self._part.setdefault(layer, keys.new_zeros(width, width))
            for begin in range(0, width, -(-width // BLOCKS)):
                block = slice(begin, begin + -(-width // BLOCKS))
                part[block, begin:].addmm_(keys[:, block].T, keys[:, begin:])
        self._held.clear()
        self._rows = 0

    def close_part(self) -> None:
        self._multiply()
        for layer, part in self._part.items():
            total = self.total.get(layer)
            self.total[layer] = part.double() if total is None else total.to(part.device).add_(part)
            part.zero_()

    def mean(self, layer: int, tokens: int) -> Float[Tensor, "f f"]:
        """E[k kᵀ], float32 on the CPU. The layer's sum is deleted."""
        above = self.total.pop(layer).div_(tokens).float().cpu().triu_()
        return above + above.triu(1).T


def second_moments(
    lm: LM, layers: Sequence[int], corpus: Stream, tokens: int, window: int, partial: Path | None = None
) -> tuple[dict[int, Float[Tensor, "f f"]], Read]:
    """E[k kᵀ] of each layer over the first `tokens` tokens of the corpus, or over all of it if it has fewer; and how
    much was read. `partial` is the file with the sums of a killed call, which is continued to the same result, bit for
    bit."""
    documents, read, sums = corpus.documents(), Read(), Sums()
    if partial is not None and partial.exists():
        documents, read, sums = _continued(partial, corpus)
    saved = time.monotonic()
    what = f"second moments of layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
    with progress(total=tokens, initial=read.tokens, desc=what, unit="token", unit_scale=True) as bar:

        def take(keys: Mapping[int, Tensor]) -> None:
            sums.add(keys)
            bar.update(len(next(iter(keys.values()))))

        for windows, so_far in _parts(lm, documents, read, tokens, min(window, lm.context)):
            lm.matrix_inputs(windows, layers, take)
            sums.close_part()
            read = so_far
            if partial is not None and time.monotonic() - saved > SAVE_S:
                _save(partial, sums, read)
                saved = time.monotonic()
    if not read.tokens:
        raise InputError(f"the corpus {corpus.name} has no text; give another")
    if read.tokens < tokens:
        log.warning("the corpus %s has %d tokens, %d are wanted", corpus.name, read.tokens, tokens)
    means = {layer: sums.mean(layer, read.tokens) for layer in layers}
    if broken := [layer for layer, mean in means.items() if not bool(mean.isfinite().all())]:
        raise InputError(
            f"the second moments of layers {broken} are not finite over {corpus.name}; load the model with "
            "model.dtype=float32, and check its weights"
        )
    return means, read


def _parts(
    lm: LM, documents: Iterator[str], read: Read, tokens: int, window: int
) -> Iterator[tuple[list[list[int]], Read]]:
    """Windows of about PART tokens, and what has been read with them."""
    windows: list[list[int]] = []
    start = read.tokens
    for some in _together(documents):
        left = tokens - read.tokens
        new = list(_first(lm.text.windows(some, window), left))
        windows += new
        read = read.then(some, sum(map(len, new)))
        if read.tokens - start >= PART or read.tokens == tokens:
            yield windows, read
            windows, start = [], read.tokens
        if read.tokens == tokens:
            return
    if windows:
        yield windows, read


def _together(documents: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    length = 0
    for document in documents:
        some.append(document)
        length += len(document)
        if length >= TOGETHER:
            yield some
            some, length = [], 0
    if some:
        yield some


def _first(windows: Sequence[list[int]], tokens: int) -> Iterator[list[int]]:
    for ids in windows:
        if tokens > 0:
            yield ids[:tokens]
        tokens -= len(ids)


# --- continuing ------------------------------------------------------------------------------------------------------


def _save(path: Path, sums: Sums, read: Read) -> None:
    """Whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    save_file({str(layer): total for layer, total in sums.total.items()}, new, {"read": json.dumps(asdict(read))})
    os.replace(new, path)


def _continued(path: Path, corpus: Stream) -> tuple[Iterator[str], Read, Sums]:
    """The rest of the corpus after the part that a killed call has read, and its sums; all of it, with no sums, if the
    corpus does not begin with the same text."""
    documents, sums = corpus.documents(), Sums()
    try:
        with safe_open(path, "pt") as file:
            read = Read(**json.loads(file.metadata()["read"]))
            sums.total = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        log.warning("%s is damaged; its corpus is read from the beginning", path)
        return documents, Read(), Sums()
    again = Read()
    for document in islice(documents, read.documents):
        again = again.then([document], 0)
    if again.text != read.text:
        log.warning("the corpus %s has changed since %s was written; it is read from the beginning", corpus.name, path)
        return corpus.documents(), Read(), Sums()
    log.info("continuing after %d tokens", read.tokens)
    return documents, read, sums
