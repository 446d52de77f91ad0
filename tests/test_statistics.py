"""Second moments: equal to a direct computation, whatever the batches, the windows and the kills; and null spaces."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kedit import corpora, moments
from kedit.corpora import Stream, stream
from kedit.errors import InputError
from kedit.lm import LM
from kedit.moments import second_moments
from kedit.statistics import FILE, KIND, Statistics, null_space
from kedit.world import running_text

LAYERS = [0, 2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stream_of(documents: Sequence[str]) -> Stream:
    return Stream("given", {"given": len(documents)}, lambda: iter(documents))


TEXTS = list(islice(running_text(), 40))
LONG = " ".join(TEXTS)


def direct(lm: LM, sequences: Sequence[list[int]], layer: int) -> Tensor:
    """One sequence at a time, the whole model, float64."""
    kept: list[Tensor] = []
    matrix = lm.model.get_submodule(lm.anatomy.mlp_out.format(layer))
    hook = matrix.register_forward_pre_hook(lambda _, args: kept.append(args[0][0].double()))
    with torch.no_grad():
        for ids in sequences:
            lm.model(input_ids=torch.tensor([ids]))
    hook.remove()
    keys = torch.cat(kept)
    return keys.T @ keys / len(keys)


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_moments_equal_a_direct_computation_on_all_tokens(shaped: LM) -> None:
    sequences = shaped.text.prompts(TEXTS)
    made, read = second_moments(shaped, LAYERS, stream_of(TEXTS), 10**6, 128)
    assert read.tokens == sum(map(len, sequences))
    for layer in LAYERS:
        assert made[layer].shape == (shaped.anatomy.mlp_width(shaped.model, layer),) * 2
        assert made[layer].dtype == torch.float32
        assert torch.equal(made[layer], made[layer].T)
        assert apart(made[layer], direct(shaped, sequences, layer)) < 1e-6


@pytest.mark.parametrize("budget", [1, 100, 10_000])
def test_moments_do_not_depend_on_batches_stacks_and_parts(
    lm: LM, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = second_moments(lm, [1], stream_of(TEXTS), 10**6, 64)
    monkeypatch.setattr(lm, "token_budget", budget)
    for name, value in {"STACK": budget, "PART": 300, "TOGETHER": 200}.items():
        monkeypatch.setattr(moments, name, value)
    made, _ = second_moments(lm, [1], stream_of(TEXTS), 10**6, 64)
    assert apart(made[1], wanted[1]) < 1e-6


def test_a_left_padded_model_has_the_same_moments(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, _ = second_moments(lm, [1], stream_of(TEXTS), 10**6, 64)
    monkeypatch.setattr(lm, "padding_side", "left")
    made, _ = second_moments(lm, [1], stream_of(TEXTS), 10**6, 64)
    assert apart(made[1], wanted[1]) < 1e-6


def test_documents_are_cut_into_windows_that_open_as_every_text_does(lm: LM) -> None:
    [whole] = lm.text.prompts([LONG])
    windows = lm.text.windows([LONG, TEXTS[0]], 16)
    assert all(window[:1] == lm.text.special_ids and 1 < len(window) <= 16 for window in windows)
    assert windows[-1] == lm.text.windows([TEXTS[0]], 16)[-1]
    rest = windows[: -len(lm.text.windows([TEXTS[0]], 16))]
    assert [t for window in rest for t in window[1:]] == whole[1:]
    made, read = second_moments(lm, [1], stream_of([LONG]), 10**6, 16)
    assert read.tokens == sum(map(len, rest))
    assert apart(made[1], direct(lm, rest, 1)) < 1e-6


def test_the_budget_is_kept_to_the_token(lm: LM) -> None:
    windows = lm.text.windows(TEXTS, 16)
    made, read = second_moments(lm, [1], stream_of(TEXTS), 50, 16)
    first: list[list[int]] = []
    while sum(map(len, first)) < 50:
        first.append(windows[len(first)][: 50 - sum(map(len, first))])
    assert read.tokens == 50
    assert apart(made[1], direct(lm, first, 1)) < 1e-6


def test_a_corpus_that_ends_before_the_budget_is_said(lm: LM, caplog: pytest.LogCaptureFixture) -> None:
    second_moments(lm, [1], stream_of(TEXTS[:1]), 10_000, 64)
    assert "10000 were asked for" in caplog.text
    with pytest.raises(InputError, match="no text"):
        second_moments(lm, [1], stream_of([]), 10_000, 64)


def test_nothing_above_the_last_needed_matrix_is_run(shaped: LM) -> None:
    above = [shaped.model.get_submodule(shaped.anatomy.block.format(2)), shaped.model.get_output_embeddings()]
    for module in [shaped.model.get_submodule(shaped.anatomy.mlp_out.format(1)), *above]:
        module.forward = lambda *_, **__: pytest.fail("this was run")  # type: ignore[method-assign]
    second_moments(shaped, [0, 1], stream_of(TEXTS[:2]), 100, 64)


def test_memory_does_not_grow_with_the_corpus(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is read ahead of the model nor what is summed: tokens at a time, not seconds."""
    monkeypatch.setattr(moments, "PART", 2000)
    seen, ahead = 0, []

    def endless() -> Iterator[str]:
        nonlocal seen
        for document in repeat(LONG[:1000]):
            seen += 1
            yield document

    def measured(sequences: Sequence[list[int]], *rest: object) -> None:
        ahead.append(sum(map(len, sequences)))
        inputs(sequences, *rest)

    inputs = lm.matrix_inputs
    monkeypatch.setattr(moments, "TOGETHER", 2000)
    monkeypatch.setattr(lm, "matrix_inputs", measured)
    second_moments(lm, [1], Stream("endless", {}, endless), 30_000, 64)
    assert len(ahead) >= 10
    assert max(ahead) <= 2000 + 2 * 1000
    assert seen <= 30_000


# --- artefacts -------------------------------------------------------------------------------------------------------


def count_passes(lm: LM, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[int]]:
    asked: list[Sequence[int]] = []
    inputs = lm.matrix_inputs
    monkeypatch.setattr(lm, "matrix_inputs", lambda s, layers, take: (asked.append(layers), inputs(s, layers, take)))
    return asked


def test_a_layer_is_built_once_and_one_pass_makes_all_that_are_missing(
    lm: LM, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    asked = count_passes(lm, monkeypatch)
    statistics = Statistics(corpus="world", tokens=500)
    first = statistics.second_moment(lm, [1, 2])
    again = statistics.second_moment(lm, [3, 2, 1])
    assert asked == [[1, 2], [3]]
    assert list(again) == [1, 2, 3]
    assert torch.equal(first[1], again[1])
    assert sorted(p.name for p in (own_cache / KIND).glob(".*")) == []
    Statistics(corpus="world", tokens=501).second_moment(lm, [1])
    Statistics(corpus="world", tokens=500, window=64).second_moment(lm, [1])
    assert asked[2:] == [[1], [1]]


def test_a_model_without_identity_is_computed_without_the_cache(shaped: LM, own_cache: Path) -> None:
    Statistics(corpus="world", tokens=200).second_moment(shaped, [1])
    assert not (own_cache / KIND).exists()


def test_an_edited_model_is_refused(lm: LM) -> None:
    lm.track(lm.anatomy.parameters(lm.model, "mlp_out", [1]))
    with pytest.raises(RuntimeError, match="pristine"):
        Statistics(corpus="world", tokens=200).second_moment(lm, [1])


KILLED = """
import os, signal, sys
from kedit import moments, world
from kedit.statistics import Statistics

moments.PART, moments.SAVE_S, moments.TOGETHER = 500, -1, 500
saves, save = 0, moments._save

def counted(*given):
    global saves
    saves += 1
    if saves == 3:
        given[0].with_name(given[0].name + ".new").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(*given)

if sys.argv[1] == "kill":
    moments._save = counted
moments.log.info = print
Statistics(corpus="world", tokens=3000).second_moment(world.load(mlp=384), [1, 2])
"""


def test_a_killed_build_continues_to_the_same_moments_bit_for_bit(tmp_path: Path, own_cache: Path) -> None:
    home = Path(os.environ.get("HOME", "/")) / ".cache" / "kedit"
    (own_cache).mkdir()
    (own_cache / "world").symlink_to(Path(os.environ.get("KEDIT_WORLD_CACHE", home)) / "world")

    def build(how: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", KILLED, how], capture_output=True, text=True)

    def made() -> list[dict[str, Tensor]]:
        return [load_file(file) for file in sorted((own_cache / KIND).glob(f"*/{FILE}"))]

    assert build("kill").returncode == -signal.SIGKILL
    assert made() == []
    done = build("go on")
    assert done.returncode == 0, done.stderr
    assert "continuing after" in done.stdout
    continued = made()
    (own_cache / KIND).rename(own_cache / "continued")
    assert build("at once").returncode == 0
    for one, other in zip(continued, made(), strict=True):
        assert torch.equal(one["second_moment"], other["second_moment"])
