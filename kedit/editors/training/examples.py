"""What is learnt from training cases: an edit, a question that it decides, a question that it leaves as it is."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kedit.cases import Case, Edit
from kedit.common.errors import InputError

if TYPE_CHECKING:
    from kedit.lm.model import LM

REPHRASED = ("generality", "paraphrase")  # kinds of probe that ask the edit itself in other words
KEPT = ("locality", "neighborhood")  # ... and those whose answer stays


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its answer each."""

    edit: Edit
    decided: Edit  # asks the edit again, with its new answer
    kept: Edit  # asks something else; its answer stays


@dataclass(frozen=True, slots=True)
class TrainingEdit:
    """An edit of a training case with all that may be asked."""

    case: str
    edit: Edit
    rephrased: Sequence[Edit]
    kept: Sequence[Edit]

    def draw(self, rng: random.Random, own_wording: float) -> Example:
        """One question of each kind; a share `own_wording` asks the edit's own prompt, and so does every draw of an
        edit that has no rephrased prompt (KnowEdit's training files)."""
        own = not self.rephrased or rng.random() < own_wording
        decided = self.edit if own else rng.choice(self.rephrased)
        return Example(self.edit, decided, rng.choice(self.kept))


def training_edits(train: Sequence[Case]) -> list[TrainingEdit]:
    """Each edit of cases with several edits, without rephrased prompts: they may ask any of them. An edit whose case
    asks nothing that stays is given the other cases' prompts, as in MEND's own data. Raises InputError where there is
    nothing to learn from."""
    found = [
        TrainingEdit(case.id, edit, _asked(case, REPHRASED) if len(case.edits) == 1 else [], _asked(case, KEPT))
        for case in train
        for edit in case.edits
    ]
    if len({one.case for one in found}) < 2:
        raise InputError(
            f"the training split has {len(found)} edits, of which some are held out; give more with "
            "dataset.train_path (world: dataset.train_people), or what is trained already with editor.trained=DIR"
        )
    others = [(one.case, Edit(one.edit.prompt, one.edit.target_old or one.edit.target_new)) for one in found]
    return [one if one.kept else _with_kept(one, others) for one in found]


def _asked(case: Case, kinds: Sequence[str]) -> list[Edit]:
    """The distinct questions of these kinds with their canonical answers: of the first kind that the case has."""
    for kind in kinds:
        asked = {p.prompt: p.answers[0] for p in case.probes if p.kind == kind and p.answers and p.answers[0].strip()}
        if asked:
            return [Edit(prompt, answer) for prompt, answer in asked.items()]
    return []


def _with_kept(one: TrainingEdit, others: Sequence[tuple[str, Edit]]) -> TrainingEdit:
    kept = [edit for case, edit in others if case != one.case]
    drawn = random.Random(f"kept-{one.edit.prompt}").sample(kept, min(len(kept), 8))
    return TrainingEdit(one.case, one.edit, one.rephrased, drawn)


def fitting(lm: "LM", edits: Sequence[TrainingEdit]) -> list[TrainingEdit]:
    """Without the questions that are longer, with their answers, than the model's context, and without the edits that
    are themselves or have no locality question left. Raises InputError if nothing is left to learn from."""
    asked = list(dict.fromkeys(q for one in edits for q in (one.edit, *one.rephrased, *one.kept)))
    pairs = lm.text.pairs([q.prompt for q in asked], [q.target_new for q in asked])
    short = {q for q, pair in zip(asked, pairs, strict=True) if len(pair.ids) <= lm.context}
    left = [
        replace(one, rephrased=[q for q in one.rephrased if q in short], kept=[q for q in one.kept if q in short])
        for one in edits
        if one.edit in short
    ]
    found = [one for one in left if one.kept]
    if len({one.case for one in found}) < 2:
        raise InputError(
            f"of {len(edits)} training edits {len(found)} fit the model's context of {lm.context} tokens; give shorter "
            "ones with dataset.train_path, or a model with a longer context"
        )
    return found


def split(edits: Sequence[TrainingEdit], share: float, seed: int) -> tuple[list[TrainingEdit], list[TrainingEdit]]:
    """(to learn from, held out): whole cases, drawn by the seed; at least one of each."""
    cases = sorted({one.case for one in edits})
    count = min(max(1, round(share * len(cases))), len(cases) - 1)
    held = set(random.Random(f"held-out-{seed}").sample(cases, count))
    return [one for one in edits if one.case not in held], [one for one in edits if one.case in held]


def counts(edits: Sequence[TrainingEdit], cases: Sequence[Case]) -> dict[str, int]:
    """For the report: how many of the cases' edits are learnt from, and what stands for what the data lacks."""
    asked = {case.id: any(probe.kind in KEPT for probe in case.probes) for case in cases}
    found = Counter({"edits": len(edits)})
    found["without a rephrased prompt (asked in their own words)"] = sum(not one.rephrased for one in edits)
    found["without a locality question (other edits' prompts instead)"] = sum(not asked[one.case] for one in edits)
    found["longer than the model's context (left out)"] = sum(len(case.edits) for case in cases) - len(edits)
    return {name: count for name, count in found.items() if count}
