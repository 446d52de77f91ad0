"""An OpenAI-compatible endpoint, asked by the openai package: several requests at a time, retried, counted."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from kedit.common.errors import InputError, first_line
from kedit.common.options import Amount, Count, CountOrNone, Name, Positive
from kedit.common.progress import progress

CHARACTERS = 4  # in a token, about, in English


class Unanswered(Exception):
    """The model cannot be asked, now or in this way; says why, and what to do."""


@dataclass(kw_only=True, eq=False)
class ChatEndpoint:
    """`base_url` null is OpenAI's own; the key is in the environment variable `api_key_env` (null: it needs none).

    `workers` requests are under way at a time; each waits `timeout_s`, and is sent again up to `retries` times, later
    and later, where the endpoint does not answer or is busy. `max_cost`: USD; an estimate above it is refused.
    """

    model: Name
    base_url: Name | None
    api_key_env: Name | None
    decoding: Mapping[str, Any]
    workers: Count
    timeout_s: Positive
    retries: CountOrNone
    usd_per_million_in: Amount
    usd_per_million_out: Amount
    max_cost: Amount | None
    _used: list[tuple[int, int]] = field(default_factory=list, init=False)  # tokens in and out of each reply

    @property
    def option(self) -> str:
        """Where its options stand, for messages."""
        raise NotImplementedError

    def asked(self) -> Mapping[str, Any]:
        """All that a reply depends on besides the prompt: the model, and how it decodes."""
        return {"model": self.model, "role": "user", "decoding": dict(self.decoding)}

    def estimate(self, what: str, characters_in: int, characters_out: int) -> str:
        """A sentence about what asking costs. Raises InputError where it is more than it may be."""
        came_in, going_out = characters_in // CHARACTERS, characters_out // CHARACTERS
        cost = self.cost(came_in, going_out)
        said = (
            f"{what}: about {came_in:,} tokens in, {going_out:,} out, {cost:.4f} USD (at {self.usd_per_million_in:g} a "
            f"million in, {self.usd_per_million_out:g} out)"
        )
        if self.max_cost is not None and cost > self.max_cost:
            raise InputError(f"{said}; {self.option}.max_cost={self.max_cost:g} allows less, so none is asked")
        return said

    def send(self, prompts: Sequence[str], keep: Callable[[int, str], None]) -> None:
        """Ask them all; `keep` gets each reply at once, with its prompt's index, from several threads. Raises
        Unanswered, after what is under way has been kept."""
        stopped = Event()

        def one(i: int) -> None:
            if not stopped.is_set():
                try:
                    keep(i, self._reply(client, prompts[i]))
                except BaseException:
                    stopped.set()
                    raise

        with self._client() as client, ThreadPoolExecutor(self.workers) as pool:
            asked = [pool.submit(one, i) for i in range(len(prompts))]
            try:
                for done in progress(as_completed(asked), total=len(asked), desc=f"asking {self.model}"):
                    done.result()
            finally:
                stopped.set()  # what is under way is waited for: it is paid for

    def finish(self) -> None:
        """Say what was used since the last time."""
        came_in, went_out = (sum(tokens[i] for tokens in self._used) for i in (0, 1))
        if self._used:
            said = "%d replies of %s: %d tokens in, %d out, %.4f USD"
            log = logging.getLogger(type(self).__module__)
            log.info(said, len(self._used), self.model, came_in, went_out, self.cost(came_in, went_out))
        self._used.clear()

    def cost(self, came_in: int, went_out: int) -> float:
        """USD of so many tokens."""
        return (came_in * self.usd_per_million_in + went_out * self.usd_per_million_out) / 1e6

    def secret(self) -> str:
        """The key; empty if there is none."""
        return os.environ.get(self.api_key_env, "") if self.api_key_env else "none"

    def no_key(self) -> str:
        """A sentence for the user."""
        return (
            f"the environment variable {self.api_key_env} holds no key for {self.base_url or 'api.openai.com'}; "
            f"set it, or {self.option}.api_key_env=null where the endpoint needs none"
        )

    def _client(self) -> Any:
        try:
            import openai
        except ImportError as error:
            raise InputError("an endpoint is asked by the openai package: pip install 'kedit[augment]'") from error
        for name in ("httpx", "httpx2"):  # what openai sends with, by its version: a line for each request
            logging.getLogger(name).setLevel(logging.WARNING)
        secret = self.secret()
        if not secret:
            raise InputError(self.no_key())
        return openai.OpenAI(api_key=secret, base_url=self.base_url, timeout=self.timeout_s, max_retries=self.retries)

    def _reply(self, client: Any, prompt: str) -> str:
        import openai

        messages = [{"role": "user", "content": prompt}]
        try:
            completion = client.chat.completions.create(model=self.model, messages=messages, **self.decoding)
        except openai.APIStatusError as error:
            raise Unanswered(self._refused(client, error)) from error
        except openai.APIConnectionError as error:  # or timeout
            raise Unanswered(
                f"{client.base_url} does not answer ({first_line(error)}) in {self.retries + 1} attempts"
            ) from error
        except (openai.APIError, ValueError):  # an answer, but not that of a chat model
            completion = None
        return self._text(completion)

    def _refused(self, client: Any, error: Any) -> str:
        said = f"{client.base_url} says {error.status_code} ({first_line(error)[:200]})"
        if error.status_code in (401, 403):
            return f"{said}: correct the key in the environment variable {self.api_key_env}"
        if error.status_code < 500 and error.status_code not in (408, 409, 429):
            return f"{said}: correct {self.option}.model, base_url or decoding"
        return f"{said} after {self.retries + 1} attempts"

    def _text(self, completion: Any) -> str:
        """What the model says; empty where the endpoint's answer has no such thing."""
        usage = getattr(completion, "usage", None)
        self._used.append((getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0))
        try:
            return str(completion.choices[0].message.content or "")
        except (AttributeError, IndexError, TypeError):
            return ""
