"""Wordings that a language model writes when it is asked as KEDAS asks (App. A, Figs 2-4)."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from kedit.cases import Edit
from kedit.common.chat_endpoint import Unanswered
from kedit.common.errors import InputError
from kedit.common.options import Count, PathText
from kedit.common.reply_cache import Replies
from kedit.editors.incontext.augmentation import Augmentation, Form, named, qa
from kedit.editors.incontext.augmentation.from_file import EditKey, key, write
from kedit.editors.incontext.augmentation.parsing import Unusable, sentence, sentences

log = logging.getLogger(__name__)
FormKind = Literal["declarative", "paraphrased", "reversed"]
KINDS: tuple[FormKind, ...] = get_args(FormKind)
PARAPHRASES = 3
HOPELESS = 20  # unusable replies, if they are more than the usable ones: the model is asked no further
FIELD = re.compile(r"\{(query|target_new|declaration)\}")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the model."""

    kind: FormKind
    edit: Edit
    prompt: str

    def read(self, reply: str) -> list[str]:
        """The wordings in a reply. Raises Unusable."""
        return sentences(reply, self.edit, PARAPHRASES) if self.kind == "paraphrased" else [sentence(reply, self.edit)]


Keep = Callable[[Request, str], None]


@dataclass(kw_only=True, eq=False)
class LanguageModelAugmentation(Augmentation):
    """Asks for the declarative form of an edit, then for three paraphrases and the reversal of that.

    `prompts` are the questions by kind, with {query}, {target_new} and {declaration}. Replies are kept on disk as they
    come; one without the requested sentences is requested again, `attempts` times in all. Whatever ends the
    asking is an InputError, and the same command goes on from what is kept. `save_to`: a file for the forms of all
    edits of the run, as GivenForms reads it.
    """

    prompts: Mapping[str, str]
    attempts: Count
    save_to: PathText | None = None
    _known: dict[EditKey, list[Form]] = field(default_factory=dict, init=False)

    def asked(self) -> Mapping[str, Any]:
        """All that a reply depends on besides the prompt: the model, and how it decodes."""
        raise NotImplementedError

    def announce(self, missing: Sequence[Request], total: int) -> None:
        """Before `missing` of `total` questions are asked; of an edit without declaration the later ones stand there
        with its QA form instead. Raises InputError where they must not be asked."""
        raise NotImplementedError

    def ask(self, requests: Sequence[Request], keep: Keep) -> None:
        """Ask them all, and hand each reply over at once. Raises Unanswered, after what was under way is handed over;
        `keep` raises it too."""
        raise NotImplementedError

    def finish(self) -> None:
        """No request is open."""

    def prepare(self, edits: Sequence[Edit]) -> None:
        forms = self.forms(edits)
        if self.save_to:
            write(Path(self.save_to).expanduser(), edits, forms)

    def forms(self, edits: Sequence[Edit]) -> list[list[Form]]:
        new = list({key(edit): edit for edit in edits if key(edit) not in self._known}.values())
        if self.missing(self._requests(new)):
            with self.replies.alone():
                self._learn(new)
        self._known |= {key(edit): self._forms(edit) for edit in new}
        return [self._known[key(edit)] for edit in edits]

    @cached_property
    def replies(self) -> Replies:
        return Replies(self.asked())

    def _learn(self, edits: Sequence[Edit]) -> None:
        """Declarations first: the other questions contain them."""
        if missing := self.missing(self._requests(edits)):  # another process may have been first
            self.announce(missing, len(KINDS) * len(edits))
        attempt = Attempt(self)
        try:
            attempt.all_of([self._request("declarative", edit) for edit in edits])
            declared = [edit for edit in edits if self._declaration(edit)]
            attempt.all_of([request for request in self._requests(declared) if request.kind != "declarative"])
        except Unanswered as error:
            raise InputError(f"{error}; {self._progress(edits)}") from error
        finally:
            self.finish()
        if missing := self.missing(self._requests(edits)):
            raise InputError(
                f"no usable {missing[0].kind} form of {missing[0].edit.prompt!r} -> {missing[0].edit.target_new!r} in "
                f"{self.attempts} replies ({attempt.wrong[missing[0]]}); {self._progress(edits)}, or take another "
                "model, or editor/augmentation=file"
            )

    def _progress(self, edits: Sequence[Edit]) -> str:
        kept = len(KINDS) * len(edits) - len(self.missing(self._requests(edits)))
        return f"{kept} of {len(KINDS) * len(edits)} replies are kept, and the same command goes on from there"

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        return [request for request in requests if self._read(request) is None]

    def _read(self, request: Request) -> list[str] | None:
        """The wordings in the kept reply, if there is one."""
        reply = self.replies.get(request.prompt)
        try:
            return None if reply is None else request.read(reply)
        except Unusable:
            return None

    def _requests(self, edits: Sequence[Edit]) -> list[Request]:
        return [self._request(kind, edit) for edit in edits for kind in KINDS]

    def _request(self, kind: FormKind, edit: Edit) -> Request:
        declaration = "" if kind == "declarative" else self._declaration(edit) or qa(edit).text
        fields = {"query": key(edit)[0], "target_new": key(edit)[1], "declaration": declaration}
        return Request(kind, edit, FIELD.sub(lambda found: fields[found[1]], self.prompts[kind]))

    def _declaration(self, edit: Edit) -> str | None:
        found = self._read(self._request("declarative", edit))
        return found[0] if found else None

    def _forms(self, edit: Edit) -> list[Form]:
        texts: dict[str, str] = {}
        for request in self._requests([edit]):
            found = self._read(request) or []
            several = request.kind == "paraphrased"
            texts |= {f"{request.kind}_{i}" if several else request.kind: text for i, text in enumerate(found, 1)}
        return named(texts)


class Attempt:
    """Asking until all replies can be used, or the attempts are."""

    def __init__(self, source: LanguageModelAugmentation):
        self.source = source
        self.wrong: dict[Request, str] = {}  # why the last reply could not be used
        self.unusable = self.usable = 0

    def all_of(self, requests: Sequence[Request]) -> None:
        for _ in range(self.source.attempts):
            if missing := self.source.missing(requests):
                self.source.ask(missing, self.keep)

    def keep(self, request: Request, reply: str) -> None:
        try:
            request.read(reply)
        except Unusable as error:
            self.wrong[request] = str(error)
            self.unusable += 1
            if self.unusable >= max(HOPELESS, self.usable):
                raise Unanswered(
                    f"{self.unusable} replies lack the requested sentences, {self.usable} do not (the last question: "
                    f"for the {request.kind} form of {request.edit.prompt!r}: {error}); take another model"
                ) from error
        else:
            self.source.replies.keep(request.prompt, reply)
            self.usable += 1
