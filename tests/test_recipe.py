"""RECIPE: learnt soft prompts behind a sentinel. Contract: test_contract.py; training loop: test_training.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MINILM, Done

from kedit import world
from kedit.common.errors import InputError
from kedit.editors.incontext.recipe import PromptMemory, Recipe
from kedit.editors.incontext.recipe.network import RecipeNetwork, RecipeOptions
from kedit.editors.incontext.recipe.objective import RecipeLoss, RecipeObjective, Representations
from kedit.editors.training.examples import training_edits
from kedit.editors.training.trainer import Training, Update
from kedit.lm import LM
from kedit.lm.text_encoder import TextEncoder

DATA = world.cases(edits=4, limit=4, seed=1, train=True, train_people=24)
EDITS = [case.edits[0] for case in DATA.cases]
ASKED = [probe.prompt for case in DATA.cases for probe in case.probes]
OPTIONS: dict[str, Any] = {"width": 32, "train_encoder": False}
QUICK: dict[str, Any] = {"lr": 1e-3, "edits": 8, "edits_per_update": 4, "validate_every": 4, "validation_edits": 2}


def recipe(options: dict[str, Any] | None = None, **parts: Any) -> Recipe:
    memory = PromptMemory(k=1, normalize=False, **parts.pop("memory", {}))
    network = RecipeOptions(**OPTIONS | (options or {}))
    return Recipe(memory=memory, network=network, loss=RecipeLoss(), training=Training(**QUICK), **parts)


@pytest.fixture(scope="module")
def reader() -> TextEncoder:
    return TextEncoder(MINILM)


def network(reader: TextEncoder, **options: Any) -> RecipeNetwork:
    torch.manual_seed(0)
    return RecipeOptions(**OPTIONS | options).build(reader, 128)


def answers(lm: LM) -> list[list[float]]:
    return [scored.logprob for scored in lm.answer(ASKED, ["the moon"] * len(ASKED))]


def test_a_prompt_of_no_soft_tokens_changes_no_bit(lm: LM) -> None:
    editor = recipe({"prompt_tokens": 0})
    editor.fit(lm, DATA.train)
    before = answers(lm)
    editor.edit(lm, EDITS)
    editor.memory._sentinel = torch.full_like(editor.memory._sentinel, -torch.inf)
    editor.memory.margin = lambda query, score: 1.0  # type: ignore[method-assign]
    assert all(route.prefix is not None and len(route.prefix) == 0 for route in lm.route(ASKED, ASKED))
    assert answers(lm) == before


def test_a_query_is_given_a_prompt_if_its_edit_beats_the_sentinel(lm: LM) -> None:
    editor = recipe()
    editor.fit(lm, DATA.train)
    editor.edit(lm, EDITS)
    query = ASKED[0]
    [[hit]] = editor.memory.nearest([query])
    own, stored = editor.memory.represent_queries([query])[0], editor.memory.index.vectors[hit.entry.edit]
    away = own / own.norm()
    for shift, in_scope in [(-0.1, True), (0.1, False)]:
        editor.memory._sentinel = stored + shift * away
        [route] = lm.route([query], [query])
        assert route.info["in_scope"] == in_scope
        assert (route.prefix is not None) == in_scope
        assert route.prompt == query
        [told] = route.info["retrieved"]
        assert told["accepted"] == in_scope
        assert (told["probability"] > 0.5) == in_scope
        assert route.info["in_context"] == ([hit.entry.text] if in_scope else [])
    editor.memory.margin = lambda query, score: 0.0  # type: ignore[method-assign]
    assert lm.route([query], [query])[0].prefix is None  # strictly


def test_forks_have_soft_prompts_of_their_own(lm: LM) -> None:
    """Edits side by side: the first edit of each is at the same place of its memory."""
    editor = recipe()
    editor.fit(lm, DATA.train)
    forks = [editor.fork() for _ in EDITS[:2]]
    for fork, edit in zip(forks, EDITS, strict=False):
        fork.edit(lm, [edit])
    for fork, edit in zip(forks, EDITS, strict=False):
        knowledge = fork.memory.network.knowledge(fork.memory.embed([f"{edit.prompt} {edit.target_new}"]))
        wanted = fork.memory.network.prompts(knowledge)[0]
        assert torch.equal(fork.memory.soft_prompt((0,)), wanted)
    one, other = (fork.memory.soft_prompt((0,)) for fork in forks)
    assert not torch.equal(one, other)


def test_retrieval_is_learnt_by_hand(lm: LM, reader: TextEncoder) -> None:
    edits = training_edits(DATA.train)
    objective = RecipeObjective(lm, network(reader), RecipeLoss(), Training(**QUICK), edits, edits)
    knowledge, sentinel = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0])
    found = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    absent = torch.tensor([[0.0, 0.0], [0.0, 3.0]])  # scores: of the other edit 0 and of the sentinel 0; 0 and 3
    other = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # 2, 0, 1; 2, 2, 2
    values = objective._contrastive(Representations(knowledge, found, absent, other, sentinel))
    first = -torch.tensor([2.0, 0.0, 1.0]).log_softmax(-1)[0]
    beaten = -torch.tensor([2.0, 0.0, 1.0]).log_softmax(-1)[2]
    tied = -torch.tensor([0.0, 0.0]).log_softmax(-1)[0]
    even = -torch.tensor([2.0, 2.0, 2.0]).log_softmax(-1)[2]
    assert torch.allclose(values, torch.stack([first + tied + beaten, first + 0.0 + even]))


def test_an_answer_that_is_likely_enough_is_learnt_no_further(lm: LM, reader: TextEncoder) -> None:
    """Its probability is at least `hinge` times that of the next best."""
    edits = training_edits(DATA.train)
    known = DATA.cases[0].edits[0]
    for hinge, learnt in [(1e6, True), (1e-30, False)]:
        objective = RecipeObjective(lm, network(reader), RecipeLoss(hinge=hinge), Training(**QUICK), edits, edits)
        with torch.no_grad():
            loss, _ = objective._answer_loss(objective._batch([known], None))
        assert (float(loss) > 0) == learnt


def test_an_update_does_not_depend_on_how_many_edits_share_a_pass(lm: LM, reader: TextEncoder) -> None:
    edits, found = training_edits(DATA.train), []
    for at_once in (None, 1):
        made = network(reader)
        training = Training(**QUICK, at_once=at_once)
        objective = RecipeObjective(lm, made, RecipeLoss(), training, edits, edits)
        sums = objective.backward(Update(0, [3, 1, 4], range(3)))
        found.append([torch.tensor(list(sums.values())), *(p.grad for p in made.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert sum(bool(part.any()) for part in found[0][1:]) > 8


def test_the_shares_of_two_processes_add_up(lm: LM, reader: TextEncoder) -> None:
    edits, found = training_edits(DATA.train), []
    for shares in ([range(4)], [range(0, 4, 2), range(1, 4, 2)]):
        made = network(reader)
        objective = RecipeObjective(lm, made, RecipeLoss(), Training(**QUICK), edits, edits)
        for mine in shares:
            objective.backward(Update(0, [3, 1, 4, 7], mine))
        found.append([p.grad for p in made.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_an_encoder_that_learns_is_saved_with_the_rest(reader: TextEncoder) -> None:
    assert not any("encoder" in name for name in network(reader).state_dict())
    learning = RecipeOptions(width=8).build(TextEncoder(MINILM), 128)
    assert any(name.startswith("learnt_encoder.") for name in learning.state_dict())
    learning.features(["Ann"]).sum().backward()
    assert any(p.grad is not None for p in learning.learnt_encoder.parameters())


def test_standardised_features_differ_between_texts_more_than_they_have_in_common(reader: TextEncoder) -> None:
    """As the encoder gives them it is the other way round, and all edits learn one soft prompt first."""
    texts = [f"{edit.prompt} {edit.target_new}" for edit in EDITS] + ASKED
    common = {}
    for standardise in (False, True):
        made = network(reader, standardise=standardise)
        found = made.observe(texts)
        assert torch.equal(made.features(texts), found)
        common[standardise] = float(found.mean(0).square().mean() / found.var(0).mean())
    assert common[True] < 1e-6
    assert common[False] > 1
    plain = made.encoder.of_embeddings(made.sentinel_tokens)
    wanted = made.knowledge_head(((plain - made.feature_mean) / made.feature_deviation)[None])[0]
    assert torch.allclose(made.sentinel(), wanted)
    other = network(reader, standardise=True)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.features(texts), found)
    with pytest.raises(InputError, match="standardise=true needs an encoder that does not learn"):
        RecipeOptions(standardise=True)


def test_what_is_trained_is_used_by_path(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    made = recipe()
    assert made.needs_train
    made.fit(lm, DATA.train)
    told = made.fit_report()
    assert told["encoder"] == MINILM
    assert {"reliability", "generality", "locality", "contrastive", "success"} <= set(told["kept"])
    made.edit(lm, EDITS)
    wanted, saved = answers(lm), made.state()
    lm.restore()
    given = recipe(trained=told["folder"])
    assert not given.needs_train
    given.fit(lm, ())
    given.load_state(lm, saved)
    assert answers(lm) == wanted
    lm.restore()
    for options, parts, said in [
        (
            {},
            {"memory": {"encoder": "elsewhere"}},
            "trained with the encoder .*, but editor.memory.encoder is elsewhere",
        ),
        ({"width": 16}, {}, "but editor.network asks for"),
    ]:
        with pytest.raises(InputError, match=said):
            recipe(options, trained=told["folder"], **parts).fit(lm, ())
    with pytest.raises(InputError, match="learnt scores are inner products"):
        Recipe(memory=PromptMemory(k=1), network=RecipeOptions(), loss=RecipeLoss(), training=Training(**QUICK))


def test_a_run_keeps_its_memory_and_routes(kedit: Callable[..., Done], tmp_path: Path) -> None:
    quick = ["editor.training.edits=16", "editor.training.edits_per_update=8", "editor.training.validate_every=8"]
    quick += ["editor.more_training=null", "dataset.train_people=24", "editor.network.width=32", "keep_state=true"]
    done = kedit("editor=recipe", "T=3", "eval.fluency_tokens=8", *quick, KEDIT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    from kedit.reports.dashboard import training_curve
    from kedit.results.cells import find
    from kedit.results.routing import routing
    from kedit.run.memory_command import explained, listed, saved_memory

    [cell] = find(str(tmp_path / "runs"))
    curve = training_curve(cell)["training_curve"]
    assert list(curve["edits"]) == [8, 16]
    assert curve["loss"].notna().all()
    assert "recipe's encoder is all-MiniLM-L6-v2" in " ".join(done.stdout.split())
    measured = routing(cell).set_index("kind")
    assert {"filter precision", "filter recall"} <= set(measured.columns)
    of = saved_memory(str(tmp_path / "runs"))
    assert len(listed(of).lines) == 3
    grid, lines = explained(of, EDITS[0].prompt)
    assert len(grid.lines) == 1
    assert lines
