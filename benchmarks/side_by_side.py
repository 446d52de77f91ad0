"""Independent edits side by side, and the same one after another (parallel=1) and by plain loops: trainings, jobs in
`single`, evaluation."""

from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.bench import Bench, Timing
from kedit.cases import Case, questions_of
from kedit.editors import Job
from kedit.editors.finetune.lora import LoRA
from kedit.editors.finetune.per_edit import FineTune
from kedit.evaluation.evaluator import Evaluator
from kedit.loop.in_memory_journal import InMemoryJournal
from kedit.loop.runner import experiment
from kedit.loop.settings import single
from kedit.losses.cross_entropy import CrossEntropy
from kedit.losses.kdpo import KDPO

PlainEdit = Callable[[torch.Tensor, int], int]  # of token ids [1 t], in which the answer begins at a place

JOBS = {"job": "whole job without fluency", "fluency": "whole job with fluency"}
PARTS = ("training", *JOBS, "evaluation")
TIE = 1e-3  # nats: answers this near may change places


def side_by_side(
    bench: Bench, repeats: int, cases: Sequence[Case], *, parts: Sequence[str] = PARTS, only: str = ""
) -> list[list[str]]:
    """Two lines for each training (kedit one by one, and plain loops), one for each whole job (edits and answers, with
    and without fluency texts), and one for the evaluation alone. `only`: of methods whose names have this in them."""
    plain, n = bench.plain, bench.lm.anatomy.n_layers
    third = list(range(n - n // 3, n))
    adapter = {"loss": CrossEntropy(), "lr": 1e-4, "steps": 25, "parameters": None}
    methods: dict[str, tuple[FineTune, PlainEdit]] = {
        "FT-M, 25 steps": (
            FineTune(loss=CrossEntropy(), lr=1e-4, steps=25, layers=[bench.layer]),
            lambda ids, start: plain.ft_m(ids, start, 25),
        ),
        "KDPO": (
            FineTune(loss=KDPO(0.1), lr=1e-4, steps=8, cycles=3, layers=[bench.layer]),
            lambda ids, start: plain.kdpo(ids, start, 8, 3, 0.1),
        ),
        "LoRA on the last third of the layers, 25 steps": (
            FineTune(**adapter, adapter=LoRA(rank=8, alpha=32), layers=third),
            lambda ids, start: plain.lora(ids, start, 25, 8, 32, third),
        ),
        "LoRA on all layers, dropout, 25 steps": (
            FineTune(**adapter, adapter=LoRA(rank=8, alpha=32, dropout=0.1)),
            lambda ids, start: plain.lora(ids, start, 25, 8, 32, list(range(n)), dropout=0.1),
        ),
    }
    lines = []
    for name, (editor, loop) in ((name, both) for name, both in methods.items() if only in name):
        what = f"{len(cases)} x {name}"
        if "training" in parts:
            alone, beside = _trainings(bench, editor, loop, cases, repeats)
            lines += [alone.line(f"{what}: training, and one by one"), beside.line(f"{what}: training, and plain")]
        for part, tokens in (("job", 0), ("fluency", 100)):
            if part in parts:
                lines.append(_jobs(bench, editor, cases, tokens, repeats).line(f"{what}: {JOBS[part]}"))
    if "evaluation" in parts:
        editor = methods["FT-M, 25 steps"][0]
        lines.append(_answers(bench, editor, cases, repeats).line(f"{len(cases)} x evaluation, and plain"))
    return lines


def _trainings(
    bench: Bench, editor: FineTune, loop: PlainEdit, cases: Sequence[Case], repeats: int
) -> tuple[Timing, Timing]:
    """Side by side against one by one, and against plain loops."""
    lm, alone, beside, edits = bench.lm, Timing(), Timing(), [case.edits[0] for case in cases]
    pairs = lm.text.pairs([edit.prompt for edit in edits], [edit.target_new for edit in edits])
    encoded = [(torch.tensor([pair.ids], device=bench.device), pair.start) for pair in pairs]
    originals = {name: p.detach().clone() for name, p in bench.plain.model.named_parameters()}
    loop(*encoded[0])
    parameters = dict(bench.plain.model.named_parameters())
    changed = [name for name, original in originals.items() if not torch.equal(parameters[name], original)]
    restore(parameters, originals, changed)

    def together() -> None:
        with lm.in_variants(len(edits)):
            editor.edit_side_by_side(lm, [Job(editor.fork(), [edit], i) for i, edit in enumerate(edits)])

    def one_by_one() -> None:
        for edit in edits:
            editor.edit(lm, [edit])
            lm.restore()
            editor.reset()

    def plain() -> None:
        for ids, start in encoded:
            loop(ids, start)
            restore(parameters, originals, changed)

    together()  # warms up
    for _ in range(repeats):
        mine, other, theirs = bench.timed(together), bench.timed(one_by_one), bench.timed(plain)
        alone.add(mine, other)
        beside.add(mine, theirs)
    return alone, beside


def restore(
    parameters: Mapping[str, torch.Tensor], originals: Mapping[str, torch.Tensor], names: Sequence[str]
) -> None:
    for name in names:
        parameters[name].data.copy_(originals[name])


def _answers(bench: Bench, editor: FineTune, cases: Sequence[Case], repeats: int) -> Timing:
    """The evaluation of edited cases before and after, fluency texts included: pooled over the edits, and by plain
    loops, one prompt at a time."""
    lm, timing, evaluator = bench.lm, Timing(), Evaluator()
    asked = [question for case in cases for question in questions_of(case, evaluator.kinds)]
    variants = [i for i, case in enumerate(cases) for _ in questions_of(case, evaluator.kinds)]
    closed = [(q.probe.prompt, q.probe.answers[0]) for q in asked if q.probe.kind != "fluency"]
    pairs = lm.text.pairs(*zip(*closed, strict=True))  # type: ignore[arg-type]
    encoded = [(torch.tensor([pair.ids], device=bench.device), pair.start) for pair in pairs]
    texts = lm.text.prompts([q.probe.prompt for q in asked if q.probe.kind == "fluency"])
    length = min(100, lm.context)

    def ours() -> None:
        lm.cache_lower_layers([])
        evaluator.prepare(lm, asked, editor.edited_parameters(lm))
        evaluator.answer(lm, asked)
        with lm.in_variants(len(cases)):
            for i in range(len(cases)):
                with lm.scope(i):
                    lm.track(editor.edited_parameters(lm))
            evaluator.answer(lm, asked, variants)

    def plain() -> None:
        for _ in ("before", "after"):
            for one in encoded:
                bench.plain.score(*one)
            for ids in texts:
                bench.plain.generate(torch.tensor([ids], device=bench.device), length - len(ids), top_k=5)

    ours()  # warms up
    for _ in range(repeats):
        timing.add(bench.timed(ours), bench.timed(plain))
    return timing


def _jobs(bench: Bench, editor: FineTune, cases: Sequence[Case], tokens: int, repeats: int) -> Timing:
    timing, found = Timing(), {}
    evaluator = Evaluator(fluency_tokens=tokens)

    def job(parallel: int) -> None:
        journal = InMemoryJournal()
        experiment(bench.lm, single(cases), editor, evaluator, journal=journal, parallel=parallel)
        bench.lm.restore()
        found[parallel] = [row for row in journal.rows if row["when"] == "test"]

    job(len(cases))  # warms up
    for _ in range(repeats):
        timing.add(bench.timed(lambda: job(len(cases))), bench.timed(lambda: job(1)))
        timing.same &= _alike(found[len(cases)], found[1])
    return timing


def _alike(some: Sequence[dict], others: Sequence[dict]) -> bool:
    pairs = [(a.get("nll"), b.get("nll")) for a, b in zip(some, others, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    one, other = torch.tensor(known).T
    return bool(torch.allclose(one, other, atol=TIE, rtol=TIE))
