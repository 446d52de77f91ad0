"""General ability in the world: four-way multiple choice about what no edit is about."""

import random
from collections.abc import Iterator
from typing import Any

from kedit.common.options import CountOrNone, Seed
from kedit.world.edits import People, Relations
from kedit.world.facts import GEO_TEMPLATES, TEMPLATES, Person, World

OPTIONS = 4


def ability(
    *, kept_people: CountOrNone | None = None, people: People = 520, relations: Relations = 4, world_seed: Seed = 0
) -> list[dict[str, Any]]:
    """A document (prompt, choices, answer: its place among them) for each fact of geography, and one for each of the
    `kept_people` that dataset.train_people keeps from being edited (null: none), in wordings that the model was trained
    on. The wrong choices are of the right one's type. No draw of edits touches any of these facts."""
    world = World(people, relations, world_seed)
    kept = world.people[-kept_people:] if kept_people else []
    rng = random.Random(f"ability-{world_seed}")
    return [
        _document(prompt, answer, others, rng)
        for prompt, answer, others in [*_geography(world), *_about(world, kept, rng)]
    ]


def _geography(world: World) -> Iterator[tuple[str, str, list[str]]]:
    """(prompt, answer, other answers of its type)."""
    for fact, table in world.geo.items():
        others = list(dict.fromkeys(table.values()))
        for i, (subject, answer) in enumerate(table.items()):
            wordings = GEO_TEMPLATES[fact]
            yield wordings[i % len(wordings)].format(s=subject), answer, others


def _about(world: World, people: list[Person], rng: random.Random) -> Iterator[tuple[str, str, list[str]]]:
    for person in people:
        relation = rng.choice(world.relations)
        trained = [text for i, text in enumerate(TEMPLATES[relation]) if i != person.held_out[relation]]
        yield rng.choice(trained).format(s=person.name), person.facts[relation], world.pool(relation)


def _document(prompt: str, answer: str, others: list[str], rng: random.Random) -> dict[str, Any]:
    wrong = rng.sample([other for other in others if other != answer], OPTIONS - 1)
    choices = rng.sample([answer, *wrong], OPTIONS)
    return {"prompt": prompt, "choices": choices, "answer": choices.index(answer)}
