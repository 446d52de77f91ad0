"""An LM as lm-eval sees a model: its token pairs, BOS and left truncation are lm-eval's, its passes are kedit's.

The edited model itself is asked, so interventions, adapters, soft prompts and memories are on. A memory is looked up by
the whole text that stands before an answer. Needs lm-eval (pip install 'kedit[lmeval]'); only measures that ask for a
benchmark import this module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from kedit.common.progress import progress
from kedit.lm.continuations import continue_tokens, score_continuations
from kedit.lm.forward import with_prefix
from kedit.lm.model import LM
from kedit.lm.route import Reading, Route
from kedit.lm.text import Pair

MAX_NEW_TOKENS = 256  # lm-eval's default
DEFAULT_LENGTH = 2048  # lm-eval's, for models that do not say how much they read

Answer = Any  # (log-probability, greedy), a log-probability, or a text
Arguments = tuple[Any, ...]  # a request's: (context, continuation), (text,), or (context, options)
# the unedited model's answers to requests of a kind, which the function computes
Unedited = Callable[[str, Sequence[Arguments], Callable[[], list[Answer]]], list[Answer]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the model reads it: the text before the answer, what that is read with, and what is asked of it."""

    prompt: str
    rest: Arguments = ()
    reading: Reading = field(default_factory=Reading)

    @property
    def args(self) -> Arguments:
        """Pairs in lm-eval's tokenisation."""
        return (self.prompt, *self.rest)


Ask = Callable[[Sequence[Asked]], list[Answer]]


class LmEvalModel(TemplateLM):
    """Answers lm-eval's requests by passes of an LM.

    `unedited` gives the unedited model's answers. They are also an edited model's answers, bit for bit, to whatever it
    reads as the unedited one does: an editor with a memory has nothing for it. `infos` collects what a memory or a gate
    decided, by task, document and place of the request.
    """

    def __init__(self, lm: LM, unedited: Unedited, file: Any = None):
        super().__init__()
        self.lm, self.unedited, self.file = lm, unedited, file
        self.tokenizer = lm.text.tokenizer
        self.infos: dict[tuple[str, int, int], dict[str, Any]] = {}

    # --- tokens, as lm-eval's HFLM makes them -------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        return int(resolve_max_length(self.lm.model.config, self.tokenizer, default=DEFAULT_LENGTH))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # --- requests -----------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._by_task("loglikelihood", requests, self._loglikelihood)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return self._by_task("loglikelihood_rolling", requests, self._rolling)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return self._by_task("generate_until", requests, self._generate)

    def _by_task(self, kind: str, requests: list[Instance], ask: Ask) -> list[Answer]:
        """Each task's requests together: what is kept of the unedited model, and the batches in which it is computed,
        do not depend on the other tasks."""
        found: list[Answer] = []
        with progress(total=len(requests), desc=kind, unit="request", file=self.file) as self._bar:
            for task, group in groupby(requests, lambda request: request.task_name):
                self._bar.set_postfix_str(str(task), refresh=False)
                found += self._task(kind, list(group), ask)
                self._bar.update(len(found) - self._bar.n)
        return found

    def _task(self, kind: str, requests: list[Instance], ask: Ask) -> list[Answer]:
        plain = [Asked(str(request.args[0]), request.args[1:]) for request in requests]
        before = partial(self.unedited, kind, [asked.args for asked in plain])
        if not self.lm.changed:
            return before(lambda: ask(plain))
        routed = self._routed(kind, plain)
        mine = [i for i, (asked, route) in enumerate(routed) if not self._as_unedited(plain[i], route)]
        answers = dict(zip(mine, ask([routed[i][0] for i in mine]), strict=True))
        for i, (asked, route) in enumerate(routed):
            if info := {**route.info, **asked.reading.info}:
                self.infos[str(requests[i].task_name), int(requests[i].doc_id), int(requests[i].idx)] = info
        known = before(lambda: self._ask_unedited(ask, plain)) if len(mine) < len(plain) else []
        return [answers[i] if i in answers else known[i] for i in range(len(plain))]

    def _ask_unedited(self, ask: Ask, plain: Sequence[Asked]) -> list[Answer]:
        with self.lm.unedited():
            return ask(plain)

    def _routed(self, kind: str, plain: Sequence[Asked]) -> list[tuple[Asked, Route]]:
        """Where each request goes. Each distinct text is looked up once, and its continuations share what is decided;
        nothing is looked up for whole texts, or by an empty one."""
        looked_up = {asked.prompt for asked in plain if asked.prompt} if kind != "loglikelihood_rolling" else set()
        texts = [text for text in dict.fromkeys(asked.prompt for asked in plain) if text in looked_up]
        routes = dict(zip(texts, self.lm.routed(texts), strict=True))
        readings = {text: route.reading for text, route in routes.items()}
        return [
            (Asked(routes[asked.prompt].prompt, asked.rest, readings[asked.prompt]), routes[asked.prompt])
            if asked.prompt in routes
            else (asked, Route(asked.prompt))
            for asked in plain
        ]

    def _as_unedited(self, asked: Asked, route: Route) -> bool:
        """Whether the model reads it as before any edit: edits act through routes alone, and this one does nothing."""
        through_routes = set(self.lm.changed) <= {"route", "adapters"}
        return through_routes and route.prompt == asked.prompt and route.reading.plain

    # --- answers ------------------------------------------------------------------------------------------------------

    def _loglikelihood(self, requests: Sequence[Asked]) -> list[tuple[float, bool]]:
        self._readings = [asked.reading for asked in requests]
        return super().loglikelihood(list(requests), disable_tqdm=True) if requests else []

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Truncated on the left as HFLM does: the last `max_length` tokens, and the one that they predict."""
        pairs = []
        for (_text, context, continuation), reading in zip(requests, self._readings, strict=True):
            ids = (context + continuation)[-(self.max_length + 1) :]
            pairs.append(with_prefix(Pair(ids, len(ids) - len(continuation)), reading))
        return [(one.logprob, one.greedy) for one in score_continuations(self.lm, pairs, self._bar.update)]

    def _rolling(self, requests: Sequence[Asked]) -> list[float]:
        """Whole texts, in lm-eval's windows. To interventions a text is all prompt, as in `LM.perplexity`."""
        windows = [self._windows(asked.prompt) for asked in requests]
        pairs = [Pair(context + rest, len(context), whole=True) for some in windows for context, rest in some]
        scored = iter(score_continuations(self.lm, pairs, self._bar.update))
        return [sum(next(scored).logprob for _ in some) for some in windows]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        options = {"prefix_token": self.prefix_token_id, "max_seq_len": self.max_length, "context_len": 1}
        return [make_disjoint_window(w) for w in get_rolling_token_windows(token_list=self.tok_encode(text), **options)]

    def _generate(self, requests: Sequence[Asked]) -> list[str]:
        """Greedily; of a text that leaves no room for the answer the beginning is left out."""
        options = [normalize_gen_kwargs(asked.rest[0], MAX_NEW_TOKENS) for asked in requests]
        limits = [int(option["max_gen_toks"]) for option in options]
        eos = self.tokenizer.decode([self.eot_token_id])
        stops = [handle_stop_sequences(list(option["until"]), eos=eos) for option in options]
        pairs = []
        for asked, limit in zip(requests, limits, strict=True):
            ids = self.tok_encode(asked.prompt)[-(self.max_length - limit) :]
            pairs.append(with_prefix(Pair(ids, len(ids)), asked.reading))
        texts = [self.tokenizer.decode(new, skip_special_tokens=True) for new in self._new_tokens(pairs, limits, stops)]
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]

    def _new_tokens(
        self, pairs: Sequence[Pair], limits: Sequence[int], stops: Sequence[Sequence[str]]
    ) -> list[list[int]]:
        """Requests with the same stop strings together."""
        found: dict[int, list[int]] = {}
        for stop in dict.fromkeys(map(tuple, stops)):
            some = [i for i, of in enumerate(stops) if tuple(of) == stop]
            new = continue_tokens(self.lm, [pairs[i] for i in some], [limits[i] for i in some], stop)
            found |= zip(some, new, strict=True)
        return [found[i] for i in range(len(pairs))]
