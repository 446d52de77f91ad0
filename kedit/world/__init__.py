"""The embedded default: a small language model of an invented world, trained on the spot, and edits of its facts."""

from kedit.artefacts import artefact
from kedit.lm import LM
from kedit.lm import load as load_directory
from kedit.world.edits import documents, more_training, running_text
from kedit.world.edits import load as cases
from kedit.world.facts import World
from kedit.world.recipe import Recipe, key, train

__all__ = ["Recipe", "World", "cases", "documents", "load", "more_training", "running_text"]


def load(
    *,
    people: int = 520,
    relations: int = 4,
    world_seed: int = 0,
    steps: int = 1200,
    width: int = 128,
    layers: int = 4,
    mlp: int = 1024,
    token_budget: int | None = None,
) -> LM:
    """The world's model, trained once (a few minutes on one core, with a progress bar) and then read from the cache."""
    world, recipe = World(people, relations, world_seed), Recipe(steps=steps, width=width, layers=layers, mlp=mlp)
    directory = artefact("world", key(world, recipe), lambda folder: train(world, recipe, folder))
    return load_directory(str(directory), token_budget=token_budget)
