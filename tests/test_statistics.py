"""Second moments: equal to a direct computation, whatever the batches, the windows and the kills; and null spaces."""

import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kedit.common.cache import sha256
from kedit.common.errors import InputError
from kedit.covariance import corpora
from kedit.covariance import estimate as statistics
from kedit.covariance import second_moments as moments
from kedit.covariance.corpora import Stream, stream
from kedit.covariance.estimate import FILE, KIND, Covariance, null_space
from kedit.covariance.second_moments import second_moments
from kedit.lm import LM
from kedit.run import covariance_command as cli
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
    assert "10000 are wanted" in caplog.text
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


def test_of_a_symmetric_product_little_more_than_half_is_multiplied() -> None:
    keys = {0: torch.randn(64, 256)}
    flops = {torch.ops.aten.addmm_: lambda _, a, b, out_shape=None, **__: 2 * a[0] * a[1] * b[1]}
    with FlopCounterMode(display=False, custom_mapping=flops) as counter:
        sums = moments.Sums()
        sums.add(keys)
        sums.close_part()
    assert counter.get_total_flops() == 2 * 64 * 256**2 * 9 / 16


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
    asked_for = Covariance(corpus="world", tokens=500)
    first = asked_for.second_moment(lm, [1, 2])
    again = asked_for.second_moment(lm, [3, 2, 1])
    assert asked == [[1, 2], [3]]
    assert list(again) == [1, 2, 3]
    assert torch.equal(first[1], again[1])
    assert sorted(p.name for p in (own_cache / KIND).glob(".*")) == []
    Covariance(corpus="world", tokens=501).second_moment(lm, [1])
    Covariance(corpus="world", tokens=500, window=64).second_moment(lm, [1])
    assert asked[2:] == [[1], [1]]


def test_a_model_without_identity_is_computed_without_the_cache(shaped: LM, own_cache: Path) -> None:
    Covariance(corpus="world", tokens=200).second_moment(shaped, [1])
    assert not (own_cache / KIND).exists()


def test_an_edited_model_is_refused(lm: LM) -> None:
    lm.track(lm.anatomy.parameters(lm.model, "mlp_out", [1]))
    with pytest.raises(InputError, match="needs the unedited model"):
        Covariance(corpus="world", tokens=200).second_moment(lm, [1])


def processes(lm: LM, n: int, run: Callable[[int], object]) -> list[int]:
    """Run in n forked processes at once; their exit codes."""
    started = [multiprocessing.get_context("fork").Process(target=run, args=(i,)) for i in range(n)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode or 0 for process in started]


def die_at(n: int) -> Callable[..., None]:
    """As moments._save, until the n-th time: then half of it is written."""
    saves, save = itertools.count(1), moments._save

    def saved(path: Path, *rest: Any) -> None:
        if next(saves) == n:
            path.with_name(f"{path.name}.new").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        save(path, *rest)

    return saved


def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PART": 500, "TOGETHER": 500, "SAVE_S": -1}.items():
        monkeypatch.setattr(moments, name, value)


def test_a_killed_build_continues_to_the_same_moments_bit_for_bit(
    lm: LM, monkeypatch: pytest.MonkeyPatch, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_small_parts(monkeypatch)
    caplog.set_level("INFO")
    asked_for = Covariance(corpus="world", tokens=3000)
    wanted, _ = second_moments(lm, [1, 2], stream("world"), 3000, 512)

    def killed(_: int) -> None:
        moments._save = die_at(3)
        asked_for.second_moment(lm, [1, 2])

    assert processes(lm, 1, killed) == [-signal.SIGKILL]
    assert list((own_cache / KIND).glob(f"[!.]*/{FILE}")) == []
    asked = count_passes(lm, monkeypatch)
    made = asked_for.second_moment(lm, [1, 2])
    assert "continuing after" in caplog.text
    assert 0 < len(asked) < 6
    assert all(torch.equal(made[layer], wanted[layer]) for layer in (1, 2))


@pytest.mark.parametrize("damage", ["half a file", "another corpus"])
def test_partial_sums_that_do_not_fit_are_left(
    lm: LM, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_small_parts(monkeypatch)
    partial, other = tmp_path / "sums", list(reversed(TEXTS))
    wanted, _ = second_moments(lm, [1], stream_of(other), 2000, 64)
    second_moments(lm, [1], stream_of(TEXTS), 1000, 64, partial)
    if damage == "half a file":
        partial.write_bytes(partial.read_bytes()[:1000])
    made, _ = second_moments(lm, [1], stream_of(other), 2000, 64, partial)
    assert "from the beginning" in caplog.text
    assert torch.equal(made[1], wanted[1])


def test_eight_processes_that_ask_at_once_build_once(
    lm: LM, monkeypatch: pytest.MonkeyPatch, own_cache: Path, tmp_path: Path
) -> None:
    def job(i: int) -> None:
        count_passes_in(tmp_path / "passes", lm)
        layers = [[1, 2], [2, 3], [3, 1], [1]][i % 4]
        assert list(Covariance(corpus="world", tokens=300).second_moment(lm, layers)) == sorted(layers)

    assert processes(lm, 8, job) == [0] * 8
    built = [layer for line in (tmp_path / "passes").read_text().splitlines() for layer in json.loads(line)]
    assert sorted(built) == [1, 2, 3]


def count_passes_in(file: Path, lm: LM) -> None:
    inputs = lm.matrix_inputs

    def counted(sequences: Any, layers: Sequence[int], take: Any) -> None:
        with open(file, "a") as lines:
            lines.write(json.dumps(list(layers)) + "\n")
        inputs(sequences, layers, take)

    lm.matrix_inputs = counted  # type: ignore[method-assign]


# --- files -----------------------------------------------------------------------------------------------------------


def test_moments_can_be_given_as_files(lm: LM, tmp_path: Path, own_cache: Path) -> None:
    width = lm.anatomy.mlp_width(lm.model, 1)
    given = torch.eye(width)
    save_file({"any name": given.double()}, tmp_path / "given.safetensors")
    asked_for = Covariance(files={1: str(tmp_path / "given.safetensors")})
    made = asked_for.second_moment(lm, [1])
    assert torch.equal(made[1], given)
    assert made[1].dtype == torch.float32
    assert not (own_cache / KIND).exists()
    with pytest.raises(InputError, match=r"nothing for layers \[2\]"):
        asked_for.second_moment(lm, [1, 2])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": torch.eye(3)}, r"it holds a \[3, 3\], the model needs one tensor \[1024 1024\]"),
        ({"a": torch.eye(1024), "b": torch.eye(1024)}, "it holds a .*, b .*one tensor"),
        ({"a": torch.full((1024, 1024), torch.nan)}, "not finite"),
        (None, "no safetensors file"),
    ],
)
def test_a_file_that_does_not_fit_is_one_sentence(
    lm: LM, tmp_path: Path, tensors: dict[str, Tensor] | None, said: str
) -> None:
    path = tmp_path / "given.safetensors"
    save_file(tensors, path) if tensors else path.write_text("no tensors")
    with pytest.raises(InputError, match=said) as error:
        Covariance(files={1: str(path)}).second_moment(lm, [1])
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no safetensors file"):
        Covariance(files={1: str(tmp_path / "missing")}).second_moment(lm, [1])


@pytest.mark.parametrize("wrong", [{}, {"corpus": "world"}, {"corpus": "world", "tokens": 10, "window": 1}])
def test_what_cannot_be_computed_is_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="statistics"):
        Covariance(**wrong)


def test_layers_that_the_model_does_not_have_are_refused(lm: LM) -> None:
    with pytest.raises(InputError, match="layers 0 to 3"):
        Covariance(corpus="world", tokens=10).second_moment(lm, [4])


# --- corpora ---------------------------------------------------------------------------------------------------------


def test_files_are_read_document_by_document_and_long_ones_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "PIECE", 10)
    (tmp_path / "plain.txt").write_text("One.\n\n\nTwo\nlines.\n\nthree four five six\n")
    assert list(stream(str(tmp_path / "plain.txt")).documents()) == [
        "One.",
        "Two\nlines.",
        "three four",
        " five six",
    ]
    (tmp_path / "lines.jsonl").write_text('{"text": "One."}\n{"text": "0123456789abc"}\n')
    lines = stream(str(tmp_path / "lines.jsonl"))
    assert list(lines.documents()) == ["One.", "0123456789", "abc"]
    (tmp_path / "lines.jsonl").write_text('{"text": "Two."}\n')
    assert stream(str(tmp_path / "lines.jsonl")).identity != lines.identity


def test_the_world_s_text_is_endless_and_always_the_same() -> None:
    assert list(islice(stream("world").documents(), 3000))[-1:] == list(islice(stream("world").documents(), 2999, 3000))


def test_wikipedia_that_cannot_be_reached_is_one_sentence_with_the_option_that_the_editor_has() -> None:
    readers: dict[str, Callable[[], object]] = {
        "editor.statistics.corpus": lambda: next(stream("wikipedia").documents()),
        "editor.texts.source": lambda: corpora.texts("wikipedia"),
    }
    for option, read in readers.items():
        with pytest.raises(InputError, match=rf"Wikipedia .* cannot be loaded .* with {option}=FILE$") as error:
            read()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kept", [True, False])
def test_a_corpus_too_short_for_an_inverse_is_said_before_the_first_edit(lm: LM, kept: bool, tmp_path: Path) -> None:
    from test_finetune import configured

    (tmp_path / "short.txt").write_text(" ".join(LONG.split()[:6]))
    statistics = [f"editor.statistics.corpus={tmp_path}/short.txt", "editor.statistics.tokens=1000"]
    given = lm if kept else LM(lm.model, lm.text.tokenizer)  # one without identity is computed without the cache
    read = len(lm.text.prompts([" ".join(LONG.split()[:6])])[0])
    for editor in ("memit", "emmet", "rome editor.solver.covariance=true"):
        with pytest.raises(InputError, match=rf"no inverse \({read} tokens were read, more than 1024 are needed"):
            configured(*f"editor={editor}".split(), *statistics).fit(given, ())
    configured("editor=alphaedit", *statistics).fit(given, ())  # projects: it needs no inverse


def test_moments_that_are_not_finite_are_refused(shaped: LM) -> None:
    with torch.no_grad():
        shaped.model.get_input_embeddings().weight.fill_(torch.inf)
    with pytest.raises(InputError, match=r"layers \[0\] are not finite"):
        second_moments(shaped, [0], stream_of(TEXTS[:2]), 100, 64)


# --- null spaces -----------------------------------------------------------------------------------------------------


def moment_of(values: Sequence[float]) -> Tensor:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    return (basis * torch.tensor(values, dtype=torch.float64)) @ basis.T


@pytest.mark.parametrize(("threshold", "relative"), [(0.02, False), (2e-4, True)])
def test_the_null_space_is_of_the_singular_vectors_below_the_threshold(threshold: float, relative: bool) -> None:
    moment = moment_of([0.0, 1e-3, 1e-2, 0.1, 1.0, 100.0])
    projector = null_space(moment.float(), threshold, relative)
    P = projector.matrix.double()
    assert projector.rank == 3 == round(float(P.trace()))
    assert torch.allclose(P @ P, P, atol=1e-6)
    assert torch.equal(projector.matrix, projector.matrix.T)
    assert float((P @ moment @ P).norm()) < 0.02
    U, values, _ = torch.linalg.svd(moment)
    paper = U[:, values < 0.02]
    assert torch.allclose(P, paper @ paper.T, atol=1e-3)


@pytest.mark.parametrize(
    ("threshold", "relative", "said"),
    [(1e-9, False, "none of the 3"), (10.0, False, "all"), (1.5, True, "largest: all")],
)
def test_a_null_space_of_nothing_or_everything_is_refused(threshold: float, relative: bool, said: str) -> None:
    with pytest.raises(InputError, match=said):
        null_space(moment_of([1e-3, 1e-2, 1.0]).float(), threshold, relative)


def test_the_null_space_of_a_large_moment_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = moment_of([1e-3, 1e-2, 1.0]).float()
    wanted = null_space(moment, 0.1)
    monkeypatch.setattr(statistics, "LARGE", 3)
    assert null_space(moment, 0.1).rank == 2
    with pytest.raises(InputError, match="none of the 3"):
        null_space(moment, 1e-9)
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("decomposed again"))
    again = null_space(moment, 0.1)
    assert again.rank == 2
    assert torch.equal(again.matrix, wanted.matrix)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def stats(
    small_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """python -m kedit.stats, in this process; `build` of a random Llama. Exit status and what was printed."""
    monkeypatch.setenv("COLUMNS", "300")
    model = ["model=local", f"model.path={small_dir}", "dataset=zsre"]

    def run(command: str, *arguments: object) -> tuple[int, str]:
        given = [*model, *map(str, arguments)] if command == "build" else []
        monkeypatch.setattr(sys, "argv", ["kedit.stats", command, *given])
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
            return (status, capsys.readouterr().out) if isinstance(status, int) else (1, str(status))
        return 0, capsys.readouterr().out

    return run


def test_moments_are_built_listed_and_verified(stats: Callable[..., tuple[int, str]], own_cache: Path) -> None:
    status, said = stats("build", "--layers", 0, 2, "--corpus", "world", "--tokens", 300, "--window", 64)
    assert status == 0
    folders = [Path(line.rpartition(": ")[2]) for line in said.splitlines() if line.startswith("layer")]
    assert [(folder / FILE).is_file() for folder in folders] == [True, True]
    _, listed = stats("list")
    lines = [line.split() for line in listed.splitlines() if "world" in line]
    assert [line[1:6] for line in lines] == [[layer, "world", "300", "64", "float32"] for layer in ("0", "2")]
    status, said = stats("verify")
    assert status == 0
    assert said.count(": good") == 2


def spoil(folder: Path, moment: Tensor) -> None:
    """Another moment, with a manifest that fits."""
    save_file({"second_moment": moment}, folder / FILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][FILE] = sha256(folder / FILE)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (torch.ones(4, 4).triu(), "not symmetric"),
        (torch.diag(torch.tensor([1.0, -1e-3])), "not positive semi-definite"),
        (torch.tensor([[torch.inf]]), "not finite"),
        (None, "damaged"),
    ],
)
def test_verifying_finds_what_is_wrong(
    stats: Callable[..., tuple[int, str]], own_cache: Path, moment: Tensor | None, said: str
) -> None:
    stats("build", "--layers", 0, "--corpus", "world", "--tokens", 100)
    [folder] = (own_cache / KIND).glob("[!.]*/")
    spoil(folder, moment) if moment is not None else (folder / FILE).write_bytes(b"torn")
    status, printed = stats("verify")
    assert status == 1
    assert said in printed


def test_a_corpus_shorter_than_its_budget_is_not_verified(
    stats: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("One line.")
    stats("build", "--layers", 0, "--corpus", tmp_path / "short.txt", "--tokens", 1000)
    status, printed = stats("verify")
    assert status == 1
    assert "tokens of 1000" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["editor=ft_m"], "needs no second moments"),
        (["--layers", 7, "--corpus", "world", "--tokens", 10], "layers 0 to 2"),
        (["--layers", 1, "--corpus", "/nowhere", "--tokens", 10], "is no file"),
        (["--layers", 1], "neither a corpus nor files"),
        (["model=nope"], "model=nope: no such choice"),
    ],
)
def test_what_cannot_be_built_is_said(
    stats: Callable[..., tuple[int, str]], arguments: Sequence[object], said: str
) -> None:
    status, printed = stats("build", *arguments)
    assert status == 1
    assert said in printed
