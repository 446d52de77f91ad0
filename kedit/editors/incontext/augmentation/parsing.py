"""What a language model's reply says, however it is dressed up."""

import re

from kedit.cases import Edit

LABEL = re.compile(  # "Declaration: ...", "Paraphrased sentence 1: ..."
    r"^(?:the |three )?(?:declaration|declarative|reversed|paraphras\w+)(?: (?:form|sentence|version)s?)?(?: \d)?:\s*",
    re.IGNORECASE,
)
NUMBER = re.compile(r"^(?:\(?\d{1,2}[.):]|[-•])\s+")  # "1. ...", "2) ...", "- ..."
INLINE = re.compile(r"\s+(?=\(?\d[.)]\s)")  # between "1. ... 2. ... 3. ..." in one line
ECHO = re.compile(r"^(?:query:|target new:|please generate )", re.IGNORECASE)  # the question once more
EMPHASIS = re.compile(r"\*\*|`|^(?:#+|>)\s+")
QUOTED = re.compile(r"[\"“]([^\"“”]+)[\"”]\.?")


class Unusable(Exception):
    """A reply without the requested sentences; says why."""


def sentence(reply: str, edit: Edit) -> str:
    """The one requested sentence: what follows its label, else the first line. Raises Unusable."""
    lines = _lines(reply)
    labelled = [text for line in lines if LABEL.match(line) and (text := _bare(line))]
    plain = [text for line in lines if (text := _bare(line)) and not text.endswith(":")]
    if not plain:
        raise Unusable("the reply is empty")
    return _about(edit, (labelled or plain)[0])


def sentences(reply: str, edit: Edit, n: int) -> list[str]:
    """The first `n` different sentences: of the numbered lines where there are some, else of all. Raises Unusable."""
    lines = _lines(reply)
    if len(lines) == 1:
        lines = INLINE.split(LABEL.sub("", lines[0]))
    numbered = [line for line in lines if NUMBER.match(line)]
    found = dict.fromkeys(text for line in numbered or lines if (text := _bare(line)) and not text.endswith(":"))
    if len(found) < n:
        raise Unusable(f"the reply has {len(found)} of {n} sentences")
    return [_about(edit, text) for text in list(found)[:n]]


def _lines(reply: str) -> list[str]:
    """Those with text, without markdown's emphasis, up to where a model goes on with the next question by itself."""
    lines: list[str] = []
    for line in reply.splitlines():
        text = EMPHASIS.sub("", line.strip()).strip()
        if ECHO.match(text):
            break
        lines += [text] if re.search(r"\w", text) else []
    return lines


def _bare(line: str) -> str:
    """Without label, number and quotation marks."""
    text = LABEL.sub("", NUMBER.sub("", LABEL.sub("", line))).strip()
    quoted = QUOTED.fullmatch(text)
    return quoted[1].strip() if quoted else text


def _about(edit: Edit, text: str) -> str:
    """The text, if it has a word of the answer or a long one of the prompt: a refusal has neither."""
    words = _words(edit.target_new) | {word for word in _words(edit.prompt) if len(word) > 4}
    if words and not words & _words(text):
        raise Unusable(f"the reply {text[:60]!r} does not speak of the edit")
    return text


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))
