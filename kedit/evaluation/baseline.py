"""The unedited model's answers: asked once, kept on disk, shared by every editor, setting and sweep."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock

from kedit.cases import Question
from kedit.common.cache import cache_folder, digest, mark_used
from kedit.evaluation.evaluator import Answer, Evaluator
from kedit.lm import LM, Scored

log = logging.getLogger(__name__)
FORM = 2  # of a cached answer


def baseline_answers(lm: LM, evaluator: Evaluator, asked: Sequence[Question]) -> dict[Question, Answer]:
    """Answers of `lm`, which must be unedited. What a former run asked is read from the cache, the rest is computed.

    Nothing is kept for a model without identity (one built in memory), nor of EasyEdit's padded groups, where an answer
    depends on the other questions.
    """
    lm.check_unedited("the baseline (the unedited model's answers)")
    asked = list(dict.fromkeys(asked))
    if lm.identity is None or evaluator.easyedit_padding:
        return dict(zip(asked, evaluator.answer(lm, asked), strict=True))
    folder = cache_folder() / "baseline" / digest(_context(lm, evaluator))
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        known = _read(folder)
        missing = [q for q in asked if _key(q) not in known]
        if missing:
            new = {_key(q): asdict(answer) for q, answer in zip(missing, evaluator.answer(lm, missing), strict=True)}
            _append(folder, new)
            known |= new
        mark_used(folder)
    log.debug(
        "%d answers of the unedited model: %d asked, %d read", len(asked), len(missing), len(asked) - len(missing)
    )
    return {q: _answer(known[_key(q)]) for q in asked}


def _context(lm: LM, evaluator: Evaluator) -> dict[str, Any]:
    """All that an answer depends on besides the question; never batch size, T or editor."""
    tokenizer = lm.text.tokenizer
    return {
        "form": FORM,
        "model": lm.identity,
        "dtype": str(lm.dtype),
        "device": lm.device.type,
        "tokenizer": digest(
            [sorted(tokenizer.get_vocab().items()), str(tokenizer.chat_template), lm.text.keep_edge_spaces]
        ),
        "eval": {name: getattr(evaluator, name) for name in evaluator.ASKING},
        "versions": [torch.__version__, transformers.__version__],
    }


def _key(question: Question) -> str:
    """A chat template treats locality otherwise; fluency is sampled with a seed of its case."""
    probe = question.probe
    asked_as = probe.kind if probe.kind in ("locality", "fluency") else "prompt"
    place = [question.case, question.index] if probe.kind == "fluency" else []
    against = [{"competing_answer": probe.competing_answer}] if probe.competing_answer else []
    return json.dumps([asked_as, probe.prompt, probe.answers, *place, *against], ensure_ascii=False)


def _read(folder: Path) -> dict[str, Any]:
    """All segments. A segment is named by its hash; a damaged one is dropped, its answers are asked again."""
    known: dict[str, Any] = {}
    for segment in sorted(folder.glob("*.json")):
        text = segment.read_text(encoding="utf-8")
        if sha256(text.encode()).hexdigest() == segment.stem:
            known |= json.loads(text)
        else:
            log.warning("the cached answers in %s are damaged and are asked again", segment)
            segment.unlink()
    return known


def _append(folder: Path, answers: dict[str, Any]) -> None:
    text = json.dumps(answers, ensure_ascii=False)
    new = folder / ".new"
    new.write_text(text, encoding="utf-8")
    new.rename(folder / f"{sha256(text.encode()).hexdigest()}.json")


def _answer(saved: dict[str, Any]) -> Answer:
    competing_answer = saved.get("competing_answer")  # answers kept before there were contrasts do not have it
    forced = tuple(Scored(**scored) for scored in saved["forced"])
    return Answer(forced, saved["generated"], saved["info"], Scored(**competing_answer) if competing_answer else None)
