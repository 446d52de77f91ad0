"""Context templates: what may stand before a prompt while its value and its keys are found."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len, MinLen

from kedit.common.errors import InputError
from kedit.common.options import Count, OneOrMore, Rule, Text
from kedit.lm import LM

BARE = "{}"


@dataclass(kw_only=True)
class Sampling:
    """Sentences that the unedited model begins with these words, of `lengths` tokens in all -> how many, ended by ". "
    (top-k 5, as released with ROME and MEMIT). Words null: it begins from nothing, as ROME's and MEMIT's own code has
    it; EasyEdit's words are the default."""

    lengths: Annotated[Sequence[Annotated[Sequence[Count], Len(2, 2)]], MinLen(1), Rule("a list of [tokens, how many]")]
    words: OneOrMore[Text] | None = ("The", "Therefore", "Because", "I", "You")

    def __call__(self, lm: LM) -> list[str]:
        lm.check_unedited("sampling context templates")
        words = [self._opening(lm)] if self.words is None else list(self.words)
        templates = [BARE]
        for length, number in self.lengths:
            openings = [words[i % len(words)] for i in range(number)]
            seeds = [random.randrange(2**31) for _ in openings]
            said = lm.generate(openings, max_tokens=length, top_k=5, seeds=seeds, stop=False)
            templates += [" ".join(text.full.translate(BRACES).split()) + ". {}" for text in said]
        return templates

    @staticmethod
    def _opening(lm: LM) -> str:
        try:
            return lm.text.opening
        except InputError as error:
            raise InputError(f"{error}; name the first words with editor.sampling.words") from error


BRACES = str.maketrans("{}", "  ")


def given(templates: Sequence[str]) -> list[str]:
    """The bare prompt first. Raises InputError where a template has not one "{}", or none is the bare prompt."""
    for template in templates:
        if template.count(BARE) != 1:
            raise InputError(
                f"editor.context_templates: {template!r} must hold {{}} once, where the prompt stands; fix it"
            )
    if BARE not in templates:
        raise InputError(
            "editor.context_templates has no '{}', the bare prompt, in which the value is measured; add it"
        )
    return [BARE, *(template for template in templates if template != BARE)]
