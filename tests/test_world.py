"""The embedded world: deterministic, disjoint, its model knows its facts."""

import itertools
from pathlib import Path

import pytest
import torch

from kedit import world
from kedit.common.errors import InputError
from kedit.lm import LM
from kedit.world import World
from kedit.world.corpus import EOT_ID, Corpus, Rows, train_tokenizer
from kedit.world.facts import GEO_TEMPLATES, TEMPLATES
from kedit.world.recipe import Recipe, train


def test_a_world_is_made_from_its_seed_alone() -> None:
    assert World(seed=3).people == World(seed=3).people
    assert World(seed=3).people != World(seed=4).people


def test_names_and_aliases_are_unique() -> None:
    people = World().people
    assert len({person.name for person in people}) == len({person.alias for person in people}) == 520


def test_people_are_couples() -> None:
    people = World().people
    for person in people:
        assert people[person.spouse].spouse == person.index
        assert person.facts["spouse"] == people[person.spouse].name


@pytest.mark.parametrize("sizes", [{"people_count": 2000}, {"relations_count": 8}, {"relations_count": 1}])
def test_sizes_are_parameters(sizes: dict[str, int]) -> None:
    some = World(**sizes)
    assert len({person.name for person in some.people}) == some.people_count
    assert all(len(person.facts) == some.relations_count for person in some.people)


@pytest.mark.parametrize("sizes", [{"people_count": 7}, {"people_count": 2}, {"relations_count": 9}])
def test_sizes_that_make_no_world_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError):
        World(**sizes)


@pytest.mark.parametrize("people", [520, 800])
def test_strangers_are_nobody_of_the_world(people: int) -> None:
    """Not even their surnames are; each draw has others, in couples of their own."""
    some = World(people_count=people)
    surnames = {person.name.split()[1] for person in some.people}
    draws = [some.strangers(40, draw) for draw in range(3)]
    assert draws == [some.strangers(40, draw) for draw in range(3)]
    everyone = [person for draw in draws for person in draw]
    assert len({person.index for person in everyone}) == 120
    assert min(person.index for person in everyone) >= people
    for draw in draws:
        assert len({person.name for person in draw}) == 40
        assert surnames.isdisjoint(person.name.split()[1] for person in draw)
        assert {person.facts["spouse"] for person in draw} == {person.name for person in draw}


@pytest.mark.parametrize(("seed", "edits"), [(0, None), (1, 100), (101, 3)])
def test_no_test_asks_what_a_training_case_asks(seed: int, edits: int | None) -> None:
    data = world.cases(seed=seed, edits=edits, train_people=160)
    more = world.more_training(data.train, draws=3, strangers=50)
    assert len(more) == 3 * 160 + 3 * 50
    assert any("and of" in note and note.endswith("test questions 0") for note in data.notes)
    tested = {probe.prompt for case in data.cases for probe in case.probes}
    assert tested.isdisjoint(probe.prompt for case in more for probe in case.probes)
    kinds = {probe.group for case in more for probe in case.probes if probe.kind == "locality"}
    assert kinds == {"same_subject", "other_people", "geo"}


def test_training_never_shows_a_held_out_wording() -> None:
    some = World(people_count=20)
    held = {
        TEMPLATES[r][k].format(s=name).strip()
        for p in some.people
        for r, k in p.held_out.items()
        if k != 1  # biographies use the second wording for everybody
        for name in (p.name, p.alias)
    }
    for document in itertools.islice(Corpus(some, "x").documents(some.people), 3000):
        text = "".join(piece for piece, _ in document)
        assert not any(wording in text for wording in held)


def test_pieces_are_tokenised_as_in_running_text() -> None:
    some = World(people_count=20)
    tokenizer = train_tokenizer(some, 600)
    corpus = Corpus(some, "x")
    rows = Rows(corpus, tokenizer, 64)
    for document in itertools.islice(corpus.documents(some.people), 300):
        text = "".join(piece for piece, _ in document)
        assert [i for piece, _ in document for i in rows._encode(piece)] == tokenizer.encode(text).ids[1:]
    ids, weights = next(rows.batches(some.people, 4))
    assert ids.shape == weights.shape == (4, 65)
    assert (ids[:, 0] == EOT_ID).all()


def test_training_is_deterministic(tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = Recipe(mlp=64, width=32, layers=2, heads=2, steps=5, rows=4)
    for name in "ab":
        train(World(people_count=20), recipe, tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


# --- edits -----------------------------------------------------------------------------------------------------------


def test_edits_are_about_distinct_people_and_drawn_by_the_seed() -> None:
    cases = world.cases(edits=100, seed=1).cases
    assert len({case.id for case in cases}) == 520
    assert [case.id for case in cases] != [case.id for case in world.cases(edits=100, seed=2).cases]


def test_every_edit_is_counterfactual_and_probed_in_knowedits_shape() -> None:
    by_name = {person.name: person for person in World().people}
    for case in world.cases(edits=60, limit=60, seed=5).cases:
        [edit] = case.edits
        assert edit.subject is not None
        person = by_name[edit.subject]
        [relation] = [r for r in person.facts if TEMPLATES[r][0].format(s=person.name) == edit.prompt]
        assert edit.target_new != person.facts[relation]
        groups: dict[tuple[str, str], list[str]] = {}
        for probe in case.probes:
            groups.setdefault((probe.kind, probe.group), []).append(probe.prompt)
        assert groups["reliability", ""] == [edit.prompt]
        assert groups["generality", "held_out_wording"] == [
            TEMPLATES[relation][person.held_out[relation]].format(s=person.name)
        ]
        assert len(groups["portability", "alias"]) == 1
        assert ("portability", "reversed" if relation == "spouse" else "alias") in groups
        assert {group for kind, group in groups if kind == "locality"} == {"same_subject", "other_people", "geo"}


def test_nobody_asked_about_is_touched_by_an_edit_of_the_run() -> None:
    people = {person.name: person for person in World().people}
    cases = world.cases(edits=100, seed=1).cases[:100]
    touched = {edit.subject for case in cases for edit in case.edits}
    touched |= {people[edit.target_new].name for case in cases for edit in case.edits if edit.target_new in people}
    spouses = {people[name].facts["spouse"] for name in touched if name}
    for case in cases:
        for probe in case.probes:
            if probe.group == "other_people":
                asked = {name for name in people if name in probe.prompt}
                assert asked
                assert asked.isdisjoint(touched | spouses)


def test_neighbors_share_the_old_answer_and_no_edit_touches_them() -> None:
    world_people = {person.name: person for person in World().people}
    dataset = world.cases(edits=100, seed=1, train=True)
    edited = dataset.cases[:100]
    touched = {edit.subject for case in edited for edit in case.edits}
    touched |= {edit.target_new for case in edited for edit in case.edits if edit.target_new in world_people}
    touched |= {world_people[name].facts["spouse"] for name in set(touched) if name}
    reserved = {person.name for person in World().people[360:]}
    asked = 0
    for case in dataset.cases:
        [edit] = case.edits
        relation = next(r for r in TEMPLATES if TEMPLATES[r][0].format(s=edit.subject) == edit.prompt)
        neighbors = [probe for probe in case.probes if probe.kind == "neighborhood"]
        assert len(neighbors) <= (0 if relation == "spouse" else 5)
        for probe in neighbors:
            [name] = [n for n in world_people if TEMPLATES[relation][0].format(s=n) == probe.prompt]
            assert world_people[name].facts[relation] == edit.target_old == probe.answers[0]
            assert probe.competing_answer == edit.target_new
            assert name not in touched | reserved | {edit.subject}
            asked += 1
        competing = [p for p in case.probes if p.kind in ("efficacy", "paraphrase")]
        assert [(p.answers, p.competing_answer) for p in competing] == [((edit.target_new,), edit.target_old)] * 2
        assert competing[0].prompt == edit.prompt != competing[1].prompt
    assert asked > 500


def test_where_too_few_people_are_left_geography_is_asked() -> None:
    dataset = world.cases(edits=500, seed=1)
    assert not any(probe.group == "other_people" for case in dataset.cases for probe in case.probes)
    assert "people are untouched" in dataset.notes[0]
    assert world.cases(edits=100, seed=1).notes == ()


def test_train_and_test_people_are_disjoint() -> None:
    dataset = world.cases(edits=100, train=True)
    assert (len(dataset.cases), len(dataset.train)) == (360, 160)
    assert {case.id for case in dataset.cases}.isdisjoint(case.id for case in dataset.train)
    assert len(world.cases(edits=100).cases) == 520
    with pytest.raises(InputError, match="train_people"):
        world.cases(edits=1, train_people=520)


# --- the model -------------------------------------------------------------------------------------------------------


def known(lm: LM, asked: list[tuple[str, str]]) -> float:
    scored = lm.answer([prompt for prompt, _ in asked], [answer for _, answer in asked])
    return 100 * sum(s.pred == s.gold for s in scored) / len(scored)


def questions_of(some: World) -> dict[str, list[tuple[str, str]]]:
    """Everything the model was taught, by kind."""
    facts = [(p, r, TEMPLATES[r]) for p in some.people for r in some.relations]
    taught = [p for p in some.people if p.index % 10 < 7]
    return {
        "fact": [(t[0].format(s=p.name), p.facts[r]) for p, r, t in facts],
        "held_out": [(t[p.held_out[r]].format(s=p.name), p.facts[r]) for p, r, t in facts],
        "alias": [(t[0].format(s=p.alias), p.facts[r]) for p, r, t in facts],
        "geo": [(GEO_TEMPLATES[f][0].format(s=s), a) for f, table in some.geo.items() for s, a in table.items()],
        "one_hop": [(q.format(s=p.name), a) for p in taught for r in p.facts for q, a in some.one_hop(r, p.facts[r])],
    }


def test_the_model_knows_its_world(lm: LM) -> None:
    shares = {name: known(lm, questions) for name, questions in questions_of(World()).items()}
    assert shares["alias"] >= 90
    assert min(shares[name] for name in ("fact", "held_out", "geo")) >= 97


def test_the_default_model_is_shipped_and_any_other_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))
    shipped = world.load()
    assert sum(p.numel() for p in shipped.model.parameters()) == 1_967_232
    assert shipped.dtype == torch.float32
    assert not list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in world.WEIGHTS.iterdir()) < 5e6
    world.load(people=20, steps=1, width=32, mlp=32)
    assert len(list(tmp_path.glob("world/*/model.safetensors"))) == 1
