"""The covariance E[k kᵀ] (not centred: second moments) of the inputs k of an MLP's output matrix over ordinary text,
which locate-then-edit methods protect (ROME, arXiv 2202.05262 §3.1; MEMIT, arXiv 2210.07229 §4.2), and the directions
that text hardly uses (AlphaEdit's null space, arXiv 2410.02355 §3). Each layer has an artefact of its own in the cache,
which all editors share."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit.common.cache import MANIFEST, cache_folder, cached, cached_many, digest, intact, writing_lock
from kedit.common.errors import InputError, first_line
from kedit.common.options import Count, CountOrNone, Layer, PathText
from kedit.covariance.corpora import Stream, stream
from kedit.covariance.second_moments import second_moments
from kedit.lm import LM

log = logging.getLogger(__name__)

KIND = "moments"  # the artefact's name in the cache
FILE, NAME, ABOUT = "moment.safetensors", "second_moment", "about.json"
PROJECTOR = "projector.safetensors"
LARGE = 2048  # rows
ROUNDING = 1e-6  # so far below 0, relative to the largest, singular values may be


@dataclass(frozen=True, kw_only=True)
class Covariance:
    """Computed over `tokens` tokens of `corpus` (wikipedia, world, or a file: see kedit.covariance.corpora), read in
    windows of `window` tokens; or read from `files`, layer -> safetensors file with that layer's second moment, for
    some layers or all."""

    corpus: PathText | None = None
    tokens: CountOrNone = 0
    files: Mapping[Layer, PathText] | None = None
    window: Count = 512
    tokens_read: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)  # by layer

    def __post_init__(self) -> None:
        given = f"statistics.corpus={self.corpus}, tokens={self.tokens}, window={self.window}"
        if self.corpus is None and not self.files:
            raise InputError(f"{given}: neither a corpus nor files; give corpus and tokens, or files by layer")
        if self.corpus is not None and (self.tokens < 1 or self.window < 2):
            raise InputError(f"{given}: a corpus needs at least 1 token, and windows of at least 2")

    def second_moment(self, lm: LM, layers: Sequence[int]) -> dict[int, Float[Tensor, "f f"]]:
        """E[k kᵀ], float32 on the CPU, of what enters the MLP's output matrix of each of these layers of the pristine
        model. Built once for each model, layer, corpus and budget (a model without identity: not kept); one pass makes
        all that are missing."""
        lm.anatomy.check_layers(layers)
        files = {int(layer): Path(path).expanduser() for layer, path in (self.files or {}).items()}
        moments = {
            layer: read_matrix(files[layer], lm.anatomy.mlp_width(lm.model, layer), f"second moment of layer {layer}")
            for layer in layers
            if layer in files
        }
        asked = sorted(set(layers) - set(moments))
        return moments | (self._over_corpus(lm, asked) if asked else {})

    def _over_corpus(self, lm: LM, layers: Sequence[int]) -> dict[int, Tensor]:
        if self.corpus is None:
            raise InputError(f"statistics.files has nothing for layers {list(layers)}; add them, or give a corpus")
        lm.check_unedited("the covariance")
        if lm.identity is None:
            moments, read = second_moments(lm, layers, stream(self.corpus), self.tokens, self.window)
            self.tokens_read.update(dict.fromkeys(layers, read.tokens))
            return moments
        homes = self.build(lm, layers)
        self.tokens_read.update(
            {n: _json(home / ABOUT)["read"]["tokens"] for n, home in zip(layers, homes, strict=True)}
        )
        return {layer: load_file(home / FILE)[NAME] for layer, home in zip(layers, homes, strict=True)}

    def build(self, lm: LM, layers: Sequence[int]) -> list[Path]:
        """The folders with the second moments of these distinct layers over the corpus; missing ones are built."""
        if self.corpus is None or lm.identity is None:
            raise InputError("second moments are kept of a corpus and of a model that was loaded; give both")
        lm.anatomy.check_layers(layers)
        corpus = stream(self.corpus)
        keys = [self._key(lm, layer, corpus) for layer in layers]
        unfinished: list[Path] = []

        def make(new: Mapping[int, Path]) -> None:
            partial = cache_folder() / KIND / f".partial-{digest([keys[i] for i in sorted(new)])}"
            partial.mkdir(exist_ok=True)
            unfinished.append(partial)
            asked = [layers[i] for i in sorted(new)]
            with writing_lock(partial):  # nobody deletes it meanwhile
                sums = partial / "sums.safetensors"
                moments, read = second_moments(lm, asked, corpus, self.tokens, self.window, sums)
            about = {"model": lm.model.name_or_path, "corpus": corpus.name, "read": asdict(read), "built": time.time()}
            for i, folder in new.items():
                save_file({NAME: moments[layers[i]]}, folder / FILE)
                (folder / ABOUT).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")

        homes = cached_many(KIND, keys, make)
        for partial in unfinished:
            for file in partial.iterdir():
                file.unlink()
            partial.rmdir()
        return homes

    def _key(self, lm: LM, layer: int, corpus: Stream) -> dict[str, object]:
        return {
            "model": lm.identity,
            "dtype": str(lm.dtype),
            "layer": layer,
            "corpus": dict(corpus.identity),
            "tokens": self.tokens,
            "window": self.window,
        }


def read_matrix(path: Path, width: int, what: str) -> Float[Tensor, "f f"]:
    """The one tensor [f f] of a safetensors file. Raises InputError if there is none, or if it has another shape."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}, {what}: no safetensors file ({first_line(error)}); give one with a tensor [{width} {width}]"
        ) from error
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()) or "no tensor"
    if [tuple(tensor.shape) for tensor in tensors.values()] != [(width, width)]:
        raise InputError(f"{path}, {what}: it holds {shapes}, the model needs one tensor [{width} {width}]")
    [matrix] = tensors.values()
    if not bool(matrix.isfinite().all()):
        raise InputError(f"{path}, {what}: it has values that are not finite; give another file")
    return matrix.float()


@dataclass(frozen=True)
class Moment:
    """A layer's second moment in the cache."""

    path: Path

    @cached_property
    def key(self) -> dict[str, Any]:
        return _json(self.path / MANIFEST).get("key", {})

    @cached_property
    def about(self) -> dict[str, Any]:
        return _json(self.path / ABOUT)

    @property
    def legible(self) -> bool:
        return bool(self.key and self.about)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file.stat().st_size for file in self.path.iterdir())


def kept_moments() -> list[Moment]:
    return [Moment(path) for path in sorted((cache_folder() / KIND).glob("[!.]*")) if path.is_dir()]


def faults(moment: Moment) -> list[str]:
    """What is wrong with a second moment in the cache; empty if it is valid and covers the requested tokens."""
    if not moment.legible or not intact(moment.path):
        return ["damaged: it is built again when a run needs it"]
    matrix = load_file(moment.path / FILE)[NAME]
    if not bool(matrix.isfinite().all()):
        return ["values that are not finite"]
    wrong = [] if torch.equal(matrix, matrix.T) else ["not symmetric"]
    slack = ROUNDING * float(matrix.abs().sum(0).max())  # how far a bound of the largest singular value may be off
    if torch.linalg.cholesky_ex(matrix.double() + slack * torch.eye(len(matrix)))[1]:
        wrong.append("not positive semi-definite")
    read, asked = moment.about["read"]["tokens"], moment.key["tokens"]
    return wrong if read == asked else [*wrong, f"{read} tokens of {asked}: the corpus has no more"]


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@dataclass(frozen=True, eq=False)
class Projector:
    """P = U₀U₀ᵀ, the projector onto the `rank` directions that keys hardly use."""

    matrix: Float[Tensor, "f f"]
    rank: int


def projector_in(file: str, width: int, layer: int) -> Projector:
    """Read a projector from a safetensors file: one symmetric matrix that is its own square. Raises InputError if it is
    not."""
    path = Path(file).expanduser()
    matrix = read_matrix(path, width, f"projector of layer {layer}")
    if not torch.allclose(matrix @ matrix, matrix, atol=1e-3) or not torch.allclose(matrix, matrix.T, atol=1e-3):
        raise InputError(f"{path}, projector of layer {layer}: P is not symmetric with PP = P; give a projector")
    return Projector(matrix, round(float(matrix.trace())))


def null_space(moment: Float[Tensor, "f f"], threshold: float, relative: bool = False) -> Projector:
    """The projector onto the singular vectors of a second moment whose singular value is below `threshold` (AlphaEdit:
    0.02, absolute), or if `relative` below `threshold` times the largest. Raises InputError if these are none or all.

    That of a large moment, which takes minutes to decompose, is cached."""
    if len(moment) < LARGE:
        return _null_space(moment, threshold, relative)
    values = hashlib.sha256(moment.cpu().contiguous().numpy()).hexdigest()  # type: ignore[arg-type]

    def build(folder: Path) -> None:
        made = _null_space(moment, threshold, relative)
        save_file({"projector": made.matrix.cpu(), "rank": torch.tensor(made.rank)}, folder / PROJECTOR)

    key = {"moment": values, "threshold": threshold, "relative": relative}
    kept = load_file(cached("null_space", key, build) / PROJECTOR)
    return Projector(kept["projector"].to(moment.device), int(kept["rank"]))


def _null_space(moment: Float[Tensor, "f f"], threshold: float, relative: bool) -> Projector:
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
