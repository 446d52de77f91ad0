"""A beginning that several prompts have in common is read once, and nothing but the time tells."""

import pytest
import torch

from kedit.lm import LM, shared_prefix

DEMONSTRATIONS = "Fact: Lucy Kelden was born in Velport. Question: Where was Lucy Kelden born? Answer: Velport. "
OTHERS = "Fact: The occupation of Lena Ostker is glass manager. Question: Who is Lena Ostker? Answer: glass manager. "
QUESTIONS = ["Where was L. Kelden born?", "Nina lives in", "The occupation of Lena Ostker is", "Lucy", "Who is Nina?"]
PROMPTS = [f"{begin * 3}{question}" for begin in (DEMONSTRATIONS, OTHERS) for question in QUESTIONS]
ANSWERS = ["Velport", "Eastford, Beloria", "glass manager", "Kelden", "a blue bank"] * 2


def tokens_read(lm: LM, run: object) -> int:
    """How many token places a run gives to the model."""
    read = 0

    def count(module: torch.nn.Module, args: tuple) -> None:
        nonlocal read
        read += args[0].numel()

    handle = lm.embedding.register_forward_pre_hook(count)
    run()  # type: ignore[operator]
    handle.remove()
    return read


@pytest.mark.parametrize("side", ["right", "left"])
def test_answers_are_those_of_whole_prompts(shaped: LM, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shaped.padding_side = side
    prompts, answers = [*PROMPTS, "Nina lives in"], [*ANSWERS, "Velport"]
    shared = shaped.answer(prompts, answers)
    monkeypatch.setattr(shared_prefix, "LEAST", 10_000)
    for one, other in zip(shared, shaped.answer(prompts, answers), strict=True):
        assert one.pred == other.pred
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_continuations_are_those_of_whole_prompts(shaped: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [3, 9, 5, 7, 4] * 2
    sampled = {"top_k": 3, "seeds": list(range(10)), "stop": False}
    shared = [shaped.generate(PROMPTS, limits), shaped.generate(PROMPTS, limits, **sampled)]
    monkeypatch.setattr(shared_prefix, "LEAST", 10_000)
    assert [shaped.generate(PROMPTS, limits), shaped.generate(PROMPTS, limits, **sampled)] == shared


def test_what_is_shared_is_read_once(shaped: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [lambda: shaped.answer(PROMPTS, ANSWERS), lambda: shaped.generate(PROMPTS, 1)]
    shared = [tokens_read(shaped, run) for run in runs]
    monkeypatch.setattr(shared_prefix, "LEAST", 10_000)
    assert [tokens_read(shaped, run) / few for run, few in zip(runs, shared, strict=True)] > [2.0, 2.0]


def test_interventions_see_whole_prompts(lm: LM) -> None:
    seen: list[int] = []

    def change(this: object, entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.shape[1])
        return output

    lm.intervene(lm.anatomy.block.format(1), change)
    lm.answer(PROMPTS, ANSWERS)
    lm.restore()
    assert min(seen) > 60
