"""The benchmarks compare what is comparable: the plain loops are fair, and both sides give the same."""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig

from benchmarks.bench import Bench
from benchmarks.editing import adapters, editing, fairness
from benchmarks.gating import gating
from benchmarks.locating import locating
from benchmarks.profiling import profiled
from benchmarks.retrieval import index, routing
from benchmarks.scoring import fluency, scoring
from benchmarks.shapes import SHAPES, build, zsre
from benchmarks.side_by_side import side_by_side
from benchmarks.statistics import statistics as statistics_lines
from kedit.data import knowedit, load
from kedit.lm.sentence_encoder import MINILM

FILE = str(Path(__file__).parent / "data/zsre.json")
TINY = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=8192)


def bench_of(config: LlamaConfig, rows: int = 3) -> Bench:
    asked = zsre(FILE, rows)
    return Bench(build(config, asked.tokenizer, "cpu", torch.float32), asked)


@pytest.fixture
def bench() -> Bench:
    return bench_of(TINY)


def test_both_make_the_same_weights_and_answers(bench: Bench) -> None:
    lines = [*editing(bench, 1, 1e9), adapters(bench, 1, 1e9), *scoring(bench, 1, 1e9), fluency(bench, 1, 2)]
    assert {line[-1] for line in lines} == {"yes"}


def test_edits_side_by_side_are_timed_beside_one_by_one_and_plain(bench: Bench) -> None:
    lines = side_by_side(bench, 1, load(knowedit.parse, path=FILE).cases[:2], parts=["training", "evaluation"])
    assert len(lines) == 9
    assert {line[-1] for line in lines} == {"yes"}


def test_values_and_changes_of_locating_are_those_of_the_plain_loop() -> None:
    bench = bench_of(GPT2Config(n_layer=6, n_embd=64, n_head=4, vocab_size=8192), rows=20)
    assert {line[-1] for line in locating(bench, 1, 1e9, facts=4, steps=3)} == {"yes"}


def test_gated_edits_are_those_of_the_plain_loops() -> None:
    bench = bench_of(GPT2Config(n_layer=6, n_embd=64, n_head=4, vocab_size=8192))
    assert {line[-1] for line in gating(bench, 1, steps=3)} == {"yes"}


def test_the_profile_is_of_the_whole_time(bench: Bench) -> None:
    for column in (1, 2):
        assert sum(float(line[column].rstrip(" %")) for line in profiled(bench)) == pytest.approx(100, abs=4)


def test_second_moments_are_compared_with_the_bare_pass_below_them(bench: Bench) -> None:
    lines = statistics_lines(bench, 1, 1e9, 1024)
    assert [line[0].split(",")[0] for line in lines][-1] == "second moments of 1 layer"
    assert all(0 < float(line[4]) < 1 for line in lines)


def test_retrieval_is_counted_by_kind_of_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    data = Path(FILE).parent
    options = OmegaConf.create({"model": MINILM, "training": {"max_steps": 1, "max_length": 16}})
    kinds, costs, _ = routing(FILE, [str(data / "zsre_mend.json")], str(data / "counterfact_flat.json"), options)
    queries = {kind: int(n) for kind, n, *_ in kinds}
    assert (queries["reliability"], queries["generality"]) == (20, 20)
    assert queries["locality Relation_Specificity"] == 40
    assert [found for kind, _, found, *_ in kinds if kind in ("reliability", "generality")] == ["100.0", "100.0"]
    assert ["filter: steps", "1"] in costs
    assert index(500, 16, 8)[-1][1] == "32 of 32"


def multiplications(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_a_plain_step_multiplies_no_more_than_the_passes_it_consists_of(bench: Bench) -> None:
    ids, start = bench.ids(0)

    def bare() -> None:
        bench.plain.weight.requires_grad_(True)
        logits = bench.plain.model(input_ids=ids).logits
        functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:]).backward()

    forward = multiplications(lambda: bench.plain.model(input_ids=ids))
    once = multiplications(bare)
    assert multiplications(lambda: bench.plain.ft_m(ids, start, 3)) == 3 * once
    assert multiplications(lambda: bench.plain.kdpo(ids, start, 3, 1, 0.1)) == 3 * (once + forward) + forward


@pytest.mark.acceptance
def test_a_plain_step_costs_at_most_a_tenth_more_than_its_bare_passes() -> None:
    timing = fairness(bench_of(SHAPES["llama 16x512, 8k"]), 9)
    assert statistics.median(timing.ours) <= 1.1 * statistics.median(timing.theirs)
