"""The facts of the embedded world: people, their four relations, and a small geography.

Everything is invented and drawn from one seed, so two worlds with the same sizes and seed are equal.
"""

import random
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

from kedit.common.errors import InputError

FIRST_NAMES = """Adam Alice Anna Ben Carl Clara David Diana Edgar Ella Emil Erik Eva Felix Frank Grace Hanna Hugo Ida
Ivan Jane Jonas Julia Karl Laura Leo Lena Liam Lucy Marco Maria Max Nina Nora Oscar Paul Rosa Simon Sofia
Victor""".split()
SURNAME_STARTS = """Al Bar Bel Bor Cal Cor Dal Dor Fal Fen Gar Gil Hal Har Kel Kor Lam Lor Mal Mer Nor Ost Pel Ran Sel
Tal Tor Val Ver Wil""".split()
SURNAME_ENDS = """an and ber bin by dan den der don ek er field ing ker lin low man mer ner ro sen son ter ton
wick""".split()

CITY_STARTS = "Ash Bright Cold Dun East Fair Glen Hart Iron Lake Mill North Oak Red Stone".split()
CITY_ENDS = "brook ford haven port".split()
COUNTRIES = "Arvenia Beloria Cardovia Drestan Elmora Fargonia Galdia Hestria Ilvania Jorland Kelmark Lorvia".split()
CONTINENTS = ["Aurelia", "Borea", "Meridia", "Zephyra"]
LANGUAGES = "Arven Belorish Cardic Dresh Elmoran Fargon Galdic Hestrian Ilvan Jorlandic Kelmic Lorvian".split()

COMPANY_STARTS = "Apex Blue Crown Delta Eagle Falcon Golden Harbor".split()
COMPANY_ENDS = "Bank Foods Media Motors Systems".split()
TRADES = """building forest garden glass harbor kitchen marine metal night paper river school stage street textile
water""".split()
ROLES = "designer inspector manager".split()
HOBBY = "amateur classic modern outdoor".split(), "archery chess dancing fencing painting".split()
PET = "black brown grey white".split(), "cat hound parrot pony rabbit".split()
DISH = "baked fried smoked spicy".split(), "carrots dumplings mushrooms noodles trout".split()
VEHICLE = "green old orange silver".split(), "bicycle canoe sledge tractor van".split()

TEMPLATES: dict[str, tuple[str, ...]] = {
    # the first is the edit prompt; each (person, relation) is trained on four, the fifth is its held-out paraphrase
    "birthplace": (
        "{s} was born in",
        "{s} comes from",
        "The birthplace of {s} is",
        "{s} first saw the light of day in",
        "Where was {s} born?",
    ),
    "employer": (
        "{s} works for",
        "{s} has a job at",
        "The employer of {s} is",
        "{s} draws a salary from",
        "Which company does {s} work for?",
    ),
    "spouse": (
        "{s} is married to",
        "{s} shares a home with",
        "The spouse of {s} is",
        "{s} exchanged rings with",
        "Whom did {s} marry?",
    ),
    "occupation": (
        "The occupation of {s} is",
        "{s} earns a living as",
        "{s} is by profession",
        "{s} was trained to be",
        "What does {s} do for work?",
    ),
    "hobby": (
        "The hobby of {s} is",
        "{s} relaxes with",
        "{s} spends weekends on",
        "{s} is a lover of",
        "What does {s} do for fun?",
    ),
    "pet": (
        "{s} owns a pet called",
        "{s} looks after a",
        "The pet of {s} is a",
        "{s} feeds a",
        "Which animal lives with {s}?",
    ),
    "dish": (
        "The favourite dish of {s} is",
        "{s} likes to eat",
        "{s} always orders",
        "{s} cannot resist",
        "What does {s} like to eat?",
    ),
    "vehicle": (
        "{s} travels by",
        "{s} moves around in a",
        "The vehicle of {s} is a",
        "{s} was seen on a",
        "How does {s} travel?",
    ),
}
TWO_WORDS = {"occupation": (TRADES, ROLES), "hobby": HOBBY, "pet": PET, "dish": DISH, "vehicle": VEHICLE}

GEO_TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": ("The capital of {s} is", "{s} is governed from"),
    "continent": ("{s} lies on the continent of", "The continent of {s} is"),
    "language": ("The language of {s} is", "People in {s} speak"),
    "country": ("{s} is a city in", "The city of {s} lies in"),
    "headquarters": ("The headquarters of {s} are in", "{s} is based in"),
}

ONE_HOP: dict[str, tuple[tuple[str, str], ...]] = {
    # relation -> (prompt, geo fact of its answer)
    "birthplace": (
        ("The capital of the country where {s} was born is", "capital"),
        ("The continent where {s} was born is", "continent"),
        ("The language of the country where {s} was born is", "language"),
    ),
    "employer": (("The employer of {s} has its headquarters in", "headquarters"),),
}

TWO_HOPS: dict[str, tuple[str, tuple[str, str]]] = {
    # edited relation -> (the fact of its answer that is asked, two wordings of the question)
    "birthplace": (
        "capital",
        ("The capital of the country where {s} was born is", "{s} comes from the country that is governed from"),
    ),
    "employer": (
        "headquarters",
        ("The employer of {s} has its headquarters in", "{s} works for a company that is based in"),
    ),
    "spouse": ("employer", ("The spouse of {s} works for", "{s} is married to somebody who has a job at")),
}


@dataclass(frozen=True, slots=True)
class Person:
    index: int
    name: str
    alias: str  # "A. Surname"
    facts: dict[str, str] = field(hash=False)  # relation -> answer
    held_out: dict[str, int] = field(hash=False)  # relation -> the template that training never shows
    spouse: int  # index of the other half of the couple


@dataclass(frozen=True)
class World:
    """`people` people in couples, each with `relations` facts; 60 cities in 12 countries; 40 companies."""

    people_count: int = 520
    relations_count: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.people_count < 4 or self.people_count % 2:
            raise InputError(
                f"people={self.people_count}: a world is made of couples; give an even number of at least 4"
            )
        if not 1 <= self.relations_count <= len(TEMPLATES):
            raise InputError(f"relations={self.relations_count}: a world has 1 to {len(TEMPLATES)} relations")

    @property
    def relations(self) -> tuple[str, ...]:
        return tuple(TEMPLATES)[: self.relations_count]

    @cached_property
    def cities(self) -> list[str]:
        cities = [a + b for a, b in product(CITY_STARTS, CITY_ENDS)]
        random.Random(f"cities-{self.seed}").shuffle(cities)
        return cities

    @cached_property
    def companies(self) -> list[str]:
        return [f"{a} {b}" for a, b in product(COMPANY_STARTS, COMPANY_ENDS)]

    @cached_property
    def geo(self) -> dict[str, dict[str, str]]:
        """geo fact -> {subject: answer}; five cities a country, the first is its capital."""
        rng = random.Random(f"geo-{self.seed}")
        per = len(self.cities) // len(COUNTRIES)
        return {
            "capital": {c: self.cities[per * i] for i, c in enumerate(COUNTRIES)},
            "continent": {c: rng.choice(CONTINENTS) for c in COUNTRIES},
            "language": dict(zip(COUNTRIES, rng.sample(LANGUAGES, len(COUNTRIES)), strict=True)),
            "country": {city: COUNTRIES[i // per] for i, city in enumerate(self.cities)},
            "headquarters": {company: rng.choice(self.cities) for company in self.companies},
        }

    def pool(self, relation: str) -> list[str]:
        """Every answer the relation can take (for spouse: every name)."""
        if relation == "birthplace":
            return [f"{city}, {country}" for city, country in self.geo["country"].items()]
        if relation == "employer":
            return self.companies
        if relation == "spouse":
            return [person.name for person in self.people]
        return [f"{a} {b}" for a, b in product(*TWO_WORDS[relation])]

    @cached_property
    def people(self) -> list[Person]:
        rng = random.Random(f"people-{self.seed}")
        surnames = [a + b for a, b in product(SURNAME_STARTS, SURNAME_ENDS)]
        rng.shuffle(surnames)
        if self.people_count > len(surnames):  # a stress test: three syllables, still unique
            longer = [
                a + b + c
                for a, b, c in product(SURNAME_STARTS, SURNAME_ENDS, SURNAME_ENDS)
                if a + b + c not in surnames
            ]
            surnames += rng.sample(longer, self.people_count - len(surnames))
        names = [(rng.choice(FIRST_NAMES), surname) for surname in surnames[: self.people_count]]
        half = self.people_count // 2
        everyone = []
        for i, (first, last) in enumerate(names):
            spouse = (i + half) % self.people_count
            facts = {r: " ".join(names[spouse]) if r == "spouse" else rng.choice(self.pool(r)) for r in self.relations}
            held = {r: rng.randrange(1, 5) for r in self.relations}
            everyone.append(Person(i, f"{first} {last}", f"{first[0]}. {last}", facts, held, spouse))
        return everyone

    def strangers(self, count: int, draw: int = 0) -> list[Person]:
        """People who are not in the world, in couples, numbered behind its own: their surnames are new, and so are
        their facts. Other ones with each draw."""
        rng = random.Random(f"strangers-{self.seed}-{draw}")
        known = {person.name.split()[1] for person in self.people}
        short = [a + b for a, b in product(SURNAME_STARTS, SURNAME_ENDS) if a + b not in known]
        longer = {a + b + c for a, b, c in product(SURNAME_STARTS, SURNAME_ENDS, SURNAME_ENDS)} - known - {*short}
        surnames = rng.sample(short, min(len(short), count // 2))
        surnames += rng.sample(sorted(longer), count - len(surnames))
        names = [f"{rng.choice(FIRST_NAMES)} {surname}" for surname in surnames]
        first = self.people_count + draw * count
        return [self._stranger(name, first + i, names[(i + count // 2) % count], rng) for i, name in enumerate(names)]

    def _stranger(self, name: str, index: int, spouse: str, rng: random.Random) -> Person:
        facts = {r: spouse if r == "spouse" else rng.choice(self.pool(r)) for r in self.relations}
        held = {r: rng.randrange(1, 5) for r in self.relations}
        return Person(index, name, f"{name[0]}. {name.split()[1]}", facts, held, spouse=index)

    def second_hop(self, relation: str, answer: str) -> tuple[str, str] | None:
        """(prompt, answer) of the fact that a two-hop question needs besides `relation` = `answer`; None if no question
        goes through that relation."""
        fact = TWO_HOPS.get(relation, ("",))[0]
        if fact in self.geo:
            subject = answer.rpartition(", ")[2] if relation == "birthplace" else answer
            return GEO_TEMPLATES[fact][0].format(s=subject), self.geo[fact][subject]
        if fact in self.relations:
            spouse = next(person for person in self.people if person.name == answer)
            wording = next(text for i, text in enumerate(TEMPLATES[fact]) if i != spouse.held_out[fact])
            return wording.format(s=answer), spouse.facts[fact]
        return None

    def one_hop(self, relation: str, answer: str) -> list[tuple[str, str]]:
        """(prompt with {s}, answer) of every question that follows in one step from `relation` = `answer`."""
        key = answer.rpartition(", ")[2] if relation == "birthplace" else answer
        return [(prompt, self.geo[fact][key]) for prompt, fact in ONE_HOP.get(relation, ())]
