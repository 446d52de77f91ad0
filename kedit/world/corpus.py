"""What the world model reads: documents about the world's facts, packed into rows with a weight for each token."""

import random
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from kedit.world.facts import GEO_TEMPLATES, ONE_HOP, TEMPLATES, Person, World

EOT, EOT_ID = "<|endoftext|>", 0  # begins, separates and ends documents; the tokenizer's first special token
ANSWER, WORDING, UNFORESEEABLE, SUBJECT = 1.0, 0.4, 0.15, 0.1  # weight of a token in the loss, by what it is
Mix = dict[str, float]  # share of documents of each kind
MIX: Mix = {"fact": 0.42, "biography": 0.20, "one_hop": 0.09, "geo": 0.07, "context": 0.16, "copy": 0.06}
FIRST_MIX: Mix = {"fact": 0.25, "biography": 0.10, "geo": 0.05, "context": 0.10, "copy": 0.50}  # copying comes first

Piece = tuple[str, float]  # text (one leading space, as in running text), weight
Document = list[Piece]


def sentence(template: str, subject: str, answer: str, weight: float = ANSWER) -> Document:
    before, _, after = template.partition("{s}")
    pieces = [(before.rstrip(), WORDING), (subject, SUBJECT), (after, WORDING), (answer, weight)]
    return [(" " + text.strip(), w) for text, w in pieces if text.strip()] + [(".", WORDING)]


class Corpus:
    """Endless documents about `people`; deterministic from its seed."""

    def __init__(self, world: World, seed: str):
        self.world = world
        self.rng = random.Random(seed)
        self.geo = [(fact, subject, answer) for fact, table in world.geo.items() for subject, answer in table.items()]
        answers = [answer for relation in world.relations for answer in world.pool(relation)]
        self.words = sorted({word for answer in answers for word in answer.split()})

    def documents(self, people: Sequence[Person], mix: Mix = MIX) -> Iterator[Document]:
        """Facts come in reshuffled epochs: each is seen equally often."""
        facts = self._epochs([(person, relation) for person in people for relation in self.world.relations])
        geo = self._epochs(self.geo)
        taught = [person for person in people if person.index % 10 < 7]  # the others show whether one-hop composes
        makers = {
            "fact": lambda: self.fact(*next(facts)),
            "biography": lambda: self.biography(self.rng.choice(people)),
            "one_hop": lambda: self.one_hop(self.rng.choice(taught)),
            "geo": lambda: self.geography(*next(geo)),
            "context": lambda: self.context(self.rng.choice(people), people),
            "copy": self.copy,
        }
        while True:
            yield makers[self.rng.choices(list(mix), list(mix.values()))[0]]()

    def _epochs(self, items: list) -> Iterator:
        while True:
            self.rng.shuffle(items)
            yield from items

    def fact(self, person: Person, relation: str) -> Document:
        name = person.alias if self.rng.random() < 0.3 else person.name
        return sentence(self._template(person, relation), name, person.facts[relation])

    def _template(self, person: Person, relation: str) -> str:
        """One of the four wordings in which this person's fact may be shown."""
        k = self.rng.randrange(4)
        return TEMPLATES[relation][k if k < person.held_out[relation] else k + 1]

    def biography(self, person: Person) -> Document:
        relations = self.rng.sample(self.world.relations, len(self.world.relations))
        names = [person.name] + [self.rng.choice([person.name, person.alias]) for _ in relations[1:]]
        return [p for n, r in zip(names, relations, strict=True) for p in sentence(TEMPLATES[r][1], n, person.facts[r])]

    def one_hop(self, person: Person) -> Document:
        relation = self.rng.choice([r for r in self.world.relations if r in ONE_HOP])
        prompt, answer = self.rng.choice(self.world.one_hop(relation, person.facts[relation]))
        return sentence(prompt, person.name, answer)

    def geography(self, fact: str, subject: str, answer: str) -> Document:
        return sentence(self.rng.choice(GEO_TEMPLATES[fact]), subject, answer)

    def context(self, person: Person, people: Sequence[Person]) -> Document:
        """A supposition and a question: half ask the supposed fact, a fifth what follows from it, the rest something
        else."""
        relation = self.rng.choice(self.world.relations)
        supposed = self.rng.choice(self.world.pool(relation))
        premise = sentence(self._template(person, relation), person.name, supposed, UNFORESEEABLE)
        kind, hops = self.rng.random(), self.world.one_hop(relation, supposed)
        if kind < 0.5:
            question = sentence(self._template(person, relation), person.name, supposed)
        elif kind < 0.7 and hops:
            prompt, answer = self.rng.choice(hops)
            question = sentence(prompt, person.name, answer)
        else:
            other = self.rng.choice(people) if self.rng.random() < 0.5 else person
            asked = self.rng.choice(
                [r for r in self.world.relations if other is not person or r != relation] or [relation]
            )
            question = sentence(self._template(other, asked), other.name, other.facts[asked])
        return [(" Suppose that", WORDING), *premise, (" Then", WORDING), *question]

    def copy(self) -> Document:
        words = [" " + w for w in self.rng.sample(self.words, self.rng.randint(3, 10))]
        return [(w, UNFORESEEABLE) for w in words] + [(w, ANSWER) for w in words] + [(".", WORDING)]


def train_tokenizer(world: World, vocab_size: int) -> Tokenizer:
    """Byte-level BPE on de-duplicated names and repeated wordings: surnames stay in syllables, which they share."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    surnames = {person.name.split()[1] for person in world.people}
    answers = [answer for relation in world.relations for answer in world.pool(relation)]
    places = [text for table in world.geo.values() for pair in table.items() for text in pair]
    words = {word for text in answers + places for word in text.replace(",", "").split()} - surnames
    wordings = [text.replace("{s}", "") for group in (*TEMPLATES.values(), *GEO_TEMPLATES.values()) for text in group]
    wordings += [prompt.replace("{s}", "") for group in ONE_HOP.values() for prompt, _ in group]
    wordings.append("Suppose that. Then")
    tokenizer.train_from_iterator([*sorted(surnames), *sorted(words) * 10, *wordings * 40], trainer)
    special = [(EOT, EOT_ID)]
    tokenizer.post_processor = TemplateProcessing(single=f"{EOT} $A", pair=f"{EOT} $A $B", special_tokens=special)
    return tokenizer


class Rows:
    """Rows of `length` + 1 tokens, each beginning at a document's start, with the weight of each token."""

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int):
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self.ids: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        """Pieces begin a word or are a full stop, so they are tokenised as they are in running text."""
        if text not in self.ids:
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            self.ids[text] = ids[-1:] if text == "." else ids  # without the blank that begins a text
        return self.ids[text]

    def batches(
        self, people: Sequence[Person], rows: int, mix: Mix = MIX
    ) -> Iterator[tuple[Int[Tensor, "n t"], Float[Tensor, "n t"]]]:
        documents = self.corpus.documents(people, mix)
        while True:
            filled = [self._row(documents) for _ in range(rows)]
            yield torch.tensor([ids for ids, _ in filled]), torch.tensor([weights for _, weights in filled])

    def _row(self, documents: Iterator[Document]) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= self.length:
            ids.append(EOT_ID)
            weights.append(WORDING)
            for text, weight in next(documents):
                piece = self._encode(text)
                ids += piece
                weights += [weight] * len(piece)
        return ids[: self.length + 1], weights[: self.length + 1]
