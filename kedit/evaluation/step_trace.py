"""What an edit does while it is made: the same questions at its start and after each of its optimiser steps.

A line of traces.jsonl is one probe at one optimiser step: step, edits_so_far, case, kind, group, probe as in a row;
`at`, the optimiser steps made (0: as the edit found the model); `loss`, the training loss before the last of them;
`nll` and `logprob` of the probe's first answer, teacher-forced, mean and token by token. Lines with at = 0 also have
`tokens`, the answer's, and `own_logprob`, of the tokens that the model then says itself, greedily, as many as the
answer has.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kedit.cases import Case, questions_of
from kedit.evaluation.evaluator import Evaluator, Row
from kedit.evaluation.metrics.teacher_forced import mean_nll
from kedit.lm import LM, Scored
from kedit.lm.modes import eval_mode


class StepTrace:
    """Hears an edit's optimiser steps and asks the edited cases after each; the editor knows nothing of what is asked.

    Asking changes neither the model nor the random numbers, so an edit that is followed is the same edit.
    """

    def __init__(self, lm: LM, evaluator: Evaluator, cases: Sequence[Case], place: Mapping[str, Any]):
        self.lm, self.evaluator, self.place = lm, evaluator, place
        self.asked = [q for case in cases for q in questions_of(case, evaluator.each_step)]
        self.records: list[Row] = []
        self.seconds = 0.0  # that went into asking during the edit

    def start(self) -> Callable[[int, float], None] | None:
        """Ask before the edit; what is to be called after each of its optimiser steps, None where nothing is asked."""
        if not self.asked:
            return None
        answers, own = self._ask({"at": 0}), self.evaluator.score_greedy_continuation(self.lm, self.asked)
        for record, scored, said in zip(self.records, answers, own, strict=True):
            record["tokens"] = [self.lm.text.decode([token]) for token in scored.gold]
            record["own_logprob"] = _rounded(said.logprob)
        return self._after

    def _after(self, step: int, loss: float) -> None:
        started = time.perf_counter()
        with eval_mode(self.lm.model):
            self._ask({"at": step, "loss": round(loss, 6)})
        self.seconds += time.perf_counter() - started

    def _ask(self, when: Row) -> list[Scored]:
        answers = self.evaluator.score_at_step(self.lm, self.asked)
        for q, scored in zip(self.asked, answers, strict=True):
            probe = {"case": q.case, "kind": q.probe.kind, "group": q.probe.group, "probe": q.index}
            heard = {"nll": round(mean_nll(scored.logprob), 6), "logprob": _rounded(scored.logprob)}
            self.records.append({**self.place, **probe, **when, **heard})
        return answers


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in values]
