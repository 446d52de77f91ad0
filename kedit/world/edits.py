"""Edits of the embedded world and the questions about them, in KnowEdit's shape."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

from annotated_types import Ge, Le, MultipleOf

from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.common.options import Count, CountOrNone, Rule, Seed
from kedit.data import Dataset
from kedit.data.dataset import leakage_note
from kedit.world.corpus import Corpus
from kedit.world.facts import GEO_TEMPLATES, TEMPLATES, TWO_HOPS, Person, World

People = Annotated[
    int, Ge(4), Le(10_000), MultipleOf(2), Rule("an even number from 4 to 10000, because people come in couples")
]
Relations = Annotated[int, Ge(1), Le(len(TEMPLATES))]
TRAIN_PEOPLE = 160
NEIGHBORS = 5


def load(
    *,
    edits: Count | Literal["all"] | None = None,
    seed: Seed = 0,
    limit: Count | None = None,
    train_people: CountOrNone | None = None,
    people: People = 520,
    relations: Relations = 4,
    world_seed: Seed = 0,
    train: bool = False,
) -> Dataset:
    """Counterfactual edits about distinct people, drawn by `seed`.

    `edits` is the number of cases that the run will edit (None or "all": all of them): probes about other people ask
    only about people whom none of these edits touches. The last `train_people` of the world's list (None: 160 if the
    editor's fit needs `train`, else 0) are never edited.
    """
    if not (edits is None or edits == "all" or isinstance(edits, int)):
        raise InputError(f"{edits!r} edits: give a number, or all")
    world = World(people, relations, world_seed)
    reserved = (TRAIN_PEOPLE if train else 0) if train_people is None else train_people
    if not 0 <= reserved < people:
        raise InputError(
            f"dataset.train_people={reserved}: the world has {people} people, at least one must be left to edit"
        )
    if train and not reserved:
        raise InputError(
            "dataset.train_people=0, but the editor's fit learns from training cases; give it some, e.g. 160"
        )
    editable = people - reserved
    offered = min(editable if limit is None else limit, editable)
    drawn = _draw(world, world.people[:editable], f"edits-{seed}")[:offered]
    touched = drawn if not isinstance(edits, int) else drawn[:edits]
    untouched = _untouched(world.people, touched, world.people[:editable])
    asker = Asker(world, untouched, random.Random(f"probes-{seed}"))
    cases = tuple(asker.case(edit) for edit in drawn)
    taught = tuple(_training(world, world.people[editable:]))
    return Dataset(
        cases=cases,
        train=taught,
        source=f"world(people={people}, relations={relations}, world_seed={world_seed}), edits drawn with seed {seed}",
        sha256=sha256(repr(cases).encode()).hexdigest(),
        notes=(*asker.notes(), *leakage_note(taught, cases)),
        held_out=held_out(world),
    )


def more_training(
    train: Sequence[Case],
    *,
    draws: Count,
    strangers: CountOrNone = 0,
    people: People = 520,
    relations: Relations = 4,
    world_seed: Seed = 0,
) -> list[Case]:
    """The training cases, and as many again about the same people with each further draw: other answers, and mostly
    other relations; each draw also has `strangers` edits of new people, whom the world's model does not know. For what
    needs more edits, or more names, than there are training people."""
    world, subjects = World(people, relations, world_seed), {case.edits[0].subject for case in train}
    kept = [person for person in world.people if person.name in subjects]
    found = [*train]
    for draw in range(draws):
        found += _training(world, kept, draw) if draw else []
        found += _training(world, world.strangers(strangers, draw), draw) if strangers else []
    return found


def _training(world: World, people: Sequence[Person], draw: int = 0) -> list[Case]:
    """A case for each of these people. Questions about other people ask about these people, and geography is asked in
    words that no test uses, so that no question of a test is among them."""
    again = f"-{draw}" if draw else ""
    rng, cases = random.Random(f"train-probes{again}"), []
    everyone = {person.index: person for person in (*world.people, *people)}
    for edit in _draw(world, people, f"train{again}"):
        untouched = _untouched(list(everyone.values()), [edit], people)
        cases.append(Asker(world, untouched, rng, training=True).case(edit))
    return cases


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """An edit: this person's relation gets this answer."""

    person: Person
    relation: str
    answer: str


def _draw(world: World, people: Sequence[Person], seed: str) -> list[Counterfactual]:
    """One counterfactual a person, in random order; a new birthplace lies in another country, a new spouse is one of
    `people`."""
    rng = random.Random(f"{seed}-{world.seed}")
    names = [person.name for person in people]
    drawn = []
    for person in rng.sample(people, len(people)):
        relation = rng.choice(world.relations)
        old = person.facts[relation]
        country = old.rpartition(", ")[2] if relation == "birthplace" else old
        pool = names if relation == "spouse" else world.pool(relation)
        answers = [a for a in pool if not a.endswith(country) and a != person.name]
        drawn.append(Counterfactual(person, relation, rng.choice(answers)))
    return drawn


def _untouched(everyone: Sequence[Person], edits: Sequence[Counterfactual], people: Sequence[Person]) -> list[Person]:
    """Those of `people` whom no edit is about: not its subject, its new spouse, nor whoever these are married to."""
    by_name, by_index = {p.name: p for p in everyone}, {p.index: p for p in everyone}
    subjects = {edit.person.index for edit in edits}
    subjects |= {by_name[edit.answer].index for edit in edits if edit.relation == "spouse"}
    touched = subjects | {by_index[i].spouse for i in subjects}
    return [person for person in people if person.index not in touched]


class Asker:
    """Writes the probes of edits; those about other people ask about `untouched`. A `training` case asks about
    geography in words that no test uses, and has no two-hop questions."""

    def __init__(self, world: World, untouched: Sequence[Person], rng: random.Random, training: bool = False):
        self.world, self.untouched, self.rng, self.training = world, untouched, rng, training

    def notes(self) -> tuple[str, ...]:
        if len(self.untouched) >= 10:
            return ()
        few = len(self.untouched)
        return (f"only {few} people are untouched by the edits: locality asks about geography instead of them",)

    def case(self, drawn: Counterfactual) -> Case:
        person, relation = drawn.person, drawn.relation
        prompt = TEMPLATES[relation][0].format(s=person.name)
        rephrase = TEMPLATES[relation][person.held_out[relation]].format(s=person.name)
        new, old = drawn.answer, person.facts[relation]
        probes = [
            Probe("reliability", prompt, (new,)),
            Probe("generality", rephrase, (new,), "held_out_wording"),
            *self._portability(drawn),
            *self._locality(person, relation),
            Probe("fluency", prompt, (), topic=f"{relation}/{new}"),
            Probe("efficacy", prompt, (new,), competing_answer=old),
            Probe("paraphrase", rephrase, (new,), "held_out_wording", competing_answer=old),
            *self._neighborhood(drawn),
            *([] if self.training else self._two_hops(drawn)),
        ]
        return Case(f"world-{self.world.seed}-{person.index}", (Edit(prompt, new, person.name, old),), tuple(probes))

    def _portability(self, drawn: Counterfactual) -> Iterator[Probe]:
        person, relation = drawn.person, drawn.relation
        yield Probe("portability", TEMPLATES[relation][0].format(s=person.alias), (drawn.answer,), "alias")
        for prompt, answer in self.world.one_hop(relation, drawn.answer):
            yield Probe("portability", prompt.format(s=person.name), (answer,), "one_hop")
        if relation == "spouse":
            yield Probe("portability", TEMPLATES[relation][0].format(s=drawn.answer), (person.name,), "reversed")

    def _two_hops(self, drawn: Counterfactual) -> Iterator[Probe]:
        """The question in two wordings, of which any counts, and the two facts that it needs. The model was trained on
        no such question."""
        person, relation = drawn.person, drawn.relation
        second = self.world.second_hop(relation, drawn.answer)
        if second is None:
            return
        for wording in TWO_HOPS[relation][1]:
            yield Probe("multi_hop", wording.format(s=person.name), (second[1],), "2_hops", fold="any")
        yield Probe("all_hops", TEMPLATES[relation][0].format(s=person.name), (drawn.answer,), fold="all")
        yield Probe("all_hops", second[0], (second[1],), fold="all")

    def _locality(self, person: Person, relation: str) -> Iterator[Probe]:
        """Two of each kind: the subject's other relations, the same relation of other people, geography."""
        others = [r for r in self.world.relations if r != relation]
        for other in self.rng.sample(others, min(2, len(others))):
            yield Probe("locality", TEMPLATES[other][0].format(s=person.name), (person.facts[other],), "same_subject")
        enough = len(self.untouched) >= 10
        for stranger in self.rng.sample(self.untouched, 2) if enough else []:
            yield Probe(
                "locality", TEMPLATES[relation][0].format(s=stranger.name), (stranger.facts[relation],), "other_people"
            )
        geo = [(fact, subject, answer) for fact, table in self.world.geo.items() for subject, answer in table.items()]
        for fact, subject, answer in self.rng.sample(geo, 2 if enough else 4):
            yield Probe("locality", GEO_TEMPLATES[fact][int(self.training)].format(s=subject), (answer,), "geo")

    def _neighborhood(self, drawn: Counterfactual) -> Iterator[Probe]:
        """Up to five other people of whom the old answer is still true, as CounterFact has ten; none for spouses."""
        relation, old = drawn.relation, drawn.person.facts[drawn.relation]
        sharing = [p for p in self.untouched if p.facts[relation] == old and p.index != drawn.person.index]
        rng = random.Random(f"neighborhood-{drawn.person.index}-{relation}")  # leaves the other probes' draws alone
        for neighbor in rng.sample(sharing, min(NEIGHBORS, len(sharing))):
            prompt = TEMPLATES[relation][0].format(s=neighbor.name)
            yield Probe("neighborhood", prompt, (old,), competing_answer=drawn.answer)


def documents(n: int) -> list[str]:
    """`n` texts about the default world's training people, of the kind that its model was trained on."""
    world = World()
    stream = Corpus(world, "documents").documents(world.people[-TRAIN_PEOPLE:], {"biography": 0.5, "context": 0.5})
    return ["".join(text for text, _ in next(stream)).strip() for _ in range(n)]


def running_text() -> Iterator[str]:
    """Endless documents about everybody in the default world, of the kinds that its model was trained on, in an order
    that training never used."""
    world = World()
    for document in Corpus(world, "running-text").documents(world.people):
        yield "".join(text for text, _ in document).strip()


def held_out(world: World, documents: int = 60) -> str:
    """A fixed text about the world that training never used."""
    stream = Corpus(world, f"held-out-{world.seed}").documents(world.people)
    return " ".join("".join(text for text, _ in next(stream)).strip() for _ in range(documents))
