"""The unedited model's answers: asked once, kept on disk, shared by every editor, setting and sweep."""

import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import transformers

from kedit.cases import Question
from kedit.common.cache import CacheNotWritable, cache_folder, digest, mark_used, writing_lock
from kedit.evaluation.answer_cache import AnswerCache
from kedit.evaluation.answers import Answer, StrictReply
from kedit.evaluation.evaluator import Evaluator
from kedit.evaluation.metrics.teacher_forced import token_match
from kedit.lm import LM, Scored

log = logging.getLogger(__name__)
FORM = 3  # version of a cached answer's form


def baseline_answers(lm: LM, evaluator: Evaluator, asked: Sequence[Question]) -> dict[Question, Answer]:
    """Answers of `lm`, which must be unedited. What a former run asked is read from the cache, the rest is computed.

    Nothing is kept for a model without identity (one built in memory), nor of EasyEdit's padded groups, where an answer
    depends on the other questions.
    """
    lm.check_unedited("the baseline (the unedited model's answers)")
    asked = list(dict.fromkeys(asked))
    if lm.identity is None or evaluator.easyedit_padding:
        return dict(zip(asked, evaluator.answer(lm, asked), strict=True))
    cache = AnswerCache(cache_folder() / "baseline" / digest(_context(lm, evaluator)))
    mark_used(cache.file.parent)
    by_key = {_key(q, evaluator): q for q in asked}
    known = cache.get(by_key)
    read = len(known)
    if read < len(by_key):
        known |= _asked_and_kept(lm, evaluator, cache, {key: q for key, q in by_key.items() if key not in known})
    log.debug("%d answers of the unedited model: %d asked, %d read", len(by_key), len(by_key) - read, read)
    return {q: _answer(known[_key(q, evaluator)]) for q in asked}


def _asked_and_kept(
    lm: LM, evaluator: Evaluator, cache: AnswerCache, missing: Mapping[str, Question]
) -> dict[str, dict[str, Any]]:
    """If processes start together, one asks, the others wait and read. If answers cannot be kept, the run goes on."""

    def ask(questions: Mapping[str, Question]) -> dict[str, dict[str, Any]]:
        answers = evaluator.answer(lm, list(questions.values()))
        return {key: asdict(answer) for key, answer in zip(questions, answers, strict=True)}

    try:
        lock = writing_lock(cache.file.parent)
    except CacheNotWritable:
        log.warning("%s cannot be written: the unedited model's answers are not kept", cache_folder())
        return ask(missing)
    with lock:
        found = cache.get(missing)  # what another process has asked meanwhile
        new = ask({key: q for key, q in missing.items() if key not in found})
        try:
            cache.keep(new)
        except (OSError, sqlite3.Error) as error:
            log.warning("the unedited model's answers could not be kept in %s: %s", cache.file, error)
    return found | new


def _context(lm: LM, evaluator: Evaluator) -> dict[str, Any]:
    """All that an answer depends on besides the question; never batch size, T or editor."""
    return {
        "form": FORM,
        "eval": {name: getattr(evaluator, name) for name in evaluator.ASKING},
        **({"strict": dict(evaluator.profile.asking())} if "strict" in evaluator.scoring else {}),
        **model_context(lm),
    }


def model_context(lm: LM) -> dict[str, Any]:
    """All of the model that an answer of it depends on."""
    tokenizer = lm.text.tokenizer
    return {
        "model": lm.identity,
        "dtype": str(lm.dtype),
        "device": lm.device.type,
        "tokenizer": digest(
            [sorted(tokenizer.get_vocab().items()), str(tokenizer.chat_template), lm.text.keep_edge_spaces]
        ),
        "versions": [torch.__version__, transformers.__version__],
    }


def _key(question: Question, evaluator: Evaluator) -> str:
    """A chat template treats locality otherwise; fluency is sampled with a seed of its case."""
    probe = question.probe
    asked_as = probe.kind if probe.kind in ("locality", "fluency") else "prompt"
    place = [question.case, question.index] if probe.kind == "fluency" else []
    against = [{"competing_answer": probe.competing_answer}] if probe.competing_answer else []
    framed = [{"frame": [probe.frame.before, probe.frame.after, probe.frame.max_new]}] if probe.frame else []
    strictly = "strict" in evaluator.scoring and probe.kind != "fluency"
    partly = [{"strict": False}] if strictly and not evaluator.profile.asks(question) else []
    return json.dumps([asked_as, probe.prompt, probe.answers, *place, *against, *framed, *partly], ensure_ascii=False)


def _answer(saved: dict[str, Any]) -> Answer:
    competing_answer = saved.get("competing_answer")  # answers kept before there were contrasts do not have it
    forced = tuple(Scored(**scored) for scored in saved["forced"])
    strict = StrictReply(**saved["strict"]) if saved.get("strict") else None
    competing = Scored(**competing_answer) if competing_answer else None
    return Answer(forced, saved["generated"], saved["info"], competing, strict)


def noise_floor(lm: LM, asked: Sequence[Question], sample: int = 100) -> float:
    """Share of answer tokens on which a model agrees with itself, asked one by one and in one batch: 1 in float32.

    Below float32 no locality can be measured more finely than this.
    """
    probes = [q.probe for q in asked if q.probe.answers][:sample]
    pooled = lm.answer([p.prompt for p in probes], [p.answers[0] for p in probes])
    alone = [lm.answer([p.prompt], [p.answers[0]])[0] for p in probes]
    matches = [token_match(a.pred, b.pred) for a, b in zip(pooled, alone, strict=True)]
    return sum(matches) / len(matches)
