"""Strict evaluation: the model continues a framed prompt freely, and what it says before it stops is the answer.

Published evaluations differ in the frame, the stop strings, the length, the match rule and what locality compares:
each is an option, and a published combination is a yaml (conf/eval: wild, crispedit, locft, easyedit_judge).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from kedit.cases import Question
from kedit.common.errors import InputError
from kedit.common.options import Count, Rule, Text, has_fields
from kedit.evaluation.answers import StrictReply
from kedit.evaluation.metrics import StrictlyWritten, grades
from kedit.evaluation.metrics.free_answer import contains_answer, exact_match
from kedit.evaluation.metrics.strict_answer import equals_answer
from kedit.lm import LM, Route

Row = dict[str, Any]
NamedFrame = Literal["bare", "qa", "chat"]
Template = Annotated[str, has_fields("prompt"), Rule("a text with {prompt}")]
Match = Literal["strict", "lenient"]
Meaning = Literal["same_tokens", "same_text", "gold_match", "gold_judged"]
QA = "Please answer the question:\n\nQ: {prompt}\nA:"  # Yang et al. 2025 (arXiv 2502.11177), qa_inst of its code
LOCALITY = ("locality", "neighborhood")  # kinds of what must not change


class StrictProfile:
    """How a free answer is generated, where it ends, and what makes it right.

    `frame`: what stands around the prompt: nothing (bare), a question and answer (qa), the tokenizer's chat template
    after a `system` turn (chat), or a text with {prompt}. `double_bos`: a BOS that the frame begins with stays although
    the tokenizer adds one. The answer ends at the model's end-of-text token, before the first of the `stop` strings, or
    after `max_new` tokens. `match`: strict compares the whole text with the answer after lower-casing and removing
    ASCII punctuation and articles; lenient accepts a first line, or a sentence at its beginning, as `generate` does.
    `locality`: which of the four meanings tables show; null: what must not change is not asked. Questions that bring
    a frame of their own keep it, with its length.
    """

    def __init__(
        self,
        *,
        frame: NamedFrame | Template = "bare",
        system: Text | None = None,
        double_bos: bool = False,
        stop: Sequence[Text] = (".", "\n"),
        max_new: Count = 50,
        match: Match = "strict",
        locality: Meaning | None = "same_tokens",
    ):
        if frame not in get_args(NamedFrame) and "{prompt}" not in frame:
            raise InputError(f"eval.strict.frame={frame!r}: choose bare, qa or chat, or give a text with {{prompt}}")
        if system and frame != "chat":
            raise InputError(
                f"eval.strict.system={system!r} with frame={frame!r}: only a chat template has a system turn; set "
                "eval.strict.frame=chat, or put the sentence into the frame"
            )
        self.frame, self.system, self.double_bos = frame, system, double_bos
        self.stop, self.max_new, self.match, self.locality = tuple(stop), max_new, match, locality

    def asking(self) -> Mapping[str, Any]:
        """All that an answer depends on besides the question."""
        return {
            "frame": self.frame,
            "system": self.system,
            "double_bos": self.double_bos,
            "stop": list(self.stop),
            "max_new": self.max_new,
        }

    # --- asking ------------------------------------------------------------------------------------------------------

    def asks(self, question: Question) -> bool:
        return question.probe.kind not in LOCALITY or self.locality is not None

    def framed(self, lm: LM, question: Question, prompt: str) -> str:
        """`prompt`, which may hold what a memory editor gives to read, as the model reads it."""
        if own := question.probe.frame:
            return f"{own.before}{prompt}{own.after}"
        if self.frame == "chat":
            if not lm.text.chats:
                raise InputError(
                    "eval.strict.frame=chat, but the model's tokenizer has no chat template; choose eval.strict.frame="
                    "qa or bare"
                )
            return lm.text.chat(prompt, self.double_bos, self.system)
        if self.frame == "bare":
            return prompt
        text = (QA if self.frame == "qa" else self.frame).replace("{prompt}", prompt)
        return text if self.double_bos else lm.text.without_bos(text)

    def ask(self, lm: LM, asked: Sequence[Question], routes: Sequence[Route]) -> list[StrictReply]:
        """One reply a question. `routes`: where each framed prompt goes. What the model's context leaves is the most
        that a reply can have."""
        frames = [question.probe.frame for question in asked]
        left = [max(0, lm.context - len(ids)) for ids in lm.text.prompts([route.prompt for route in routes])]
        most = [frame.max_new if frame else self.max_new for frame in frames]
        written = lm.generate(routes, list(map(min, most, left)), until=self.stop)
        return [StrictReply(one.text, list(one.tokens), one.stopped_by) for one in written]

    # --- grading -----------------------------------------------------------------------------------------------------

    def matches(self, question: Question, answers: Sequence[str], text: str) -> bool:
        """Is the text one of the answers? Of a question that wants several objects: all of them."""
        probe, named = question.probe, question.probe.every or (answers,)
        if probe.frame is not None and probe.frame.contains:
            return all(contains_answer(text, names) for names in named)
        right = equals_answer if self.match == "strict" else exact_match
        return all(right(text, names) for names in named)

    def meaning(self, judged: bool) -> str:
        """What tables show of locality: without a judge, exact match stands for it."""
        return "gold_match" if self.locality == "gold_judged" and not judged else str(self.locality)

    def row(
        self,
        question: Question,
        answers: Sequence[str],
        now: StrictReply,
        before: StrictReply,
        verdicts: Mapping[str, bool | None],
    ) -> Row:
        """`verdicts`: of each judge."""
        first = next(iter(verdicts.values()), None)
        written = StrictlyWritten(
            question.probe.kind,
            now.text,
            now.tokens,
            now.stopped_by,
            matches=self.matches(question, answers, now.text),
            judged=first,
            unedited=(before.text, before.tokens, before.stopped_by) if question.probe.kind in LOCALITY else None,
            shows=self.meaning(bool(verdicts)),
        )
        said = {"generated": now.text, "stopped_by": now.stopped_by, "new_tokens": len(now.tokens)}
        by_judge = {f"judge_{name}": -1 if verdict is None else int(verdict) for name, verdict in verdicts.items()}
        return {"scoring": "strict"} | grades("strict", written) | {"gold": answers[0]} | said | by_judge
