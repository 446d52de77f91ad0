"""The embedded default: a small language model of an invented world, shipped with kedit, and edits of its facts."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le, MultipleOf

from kedit.common.cache import cached
from kedit.common.options import Count, Rule, Seed
from kedit.lm import LM
from kedit.lm import load as load_directory
from kedit.world.edits import People, Relations, documents, more_training, running_text
from kedit.world.edits import load as cases
from kedit.world.facts import World
from kedit.world.multiple_choice import ability
from kedit.world.recipe import Recipe, key, train

Width = Annotated[int, Ge(8), Le(4096), MultipleOf(8), Rule("a multiple of 8 from 8 to 4096")]
Depth = Annotated[int, Ge(1), Le(64)]
WEIGHTS = Path(__file__).parent / "weights"  # what Recipe() on World() makes: float16, read as float32

__all__ = ["Recipe", "World", "ability", "cases", "documents", "load", "more_training", "running_text"]


def load(
    *,
    people: People = 520,
    relations: Relations = 4,
    world_seed: Seed = 0,
    steps: Count = 1200,
    width: Width = 128,
    layers: Depth = 4,
    mlp: Count = 1024,
    token_budget: Count | None = None,
) -> LM:
    """The world's model. The default one is part of the package; any other is trained once (a few minutes on one core,
    with a progress bar) and then read from the cache."""
    world, recipe = World(people, relations, world_seed), Recipe(steps=steps, width=width, layers=layers, mlp=mlp)
    shipped = (world, recipe) == (World(), Recipe())
    directory = WEIGHTS if shipped else cached("world", key(world, recipe), lambda new: train(world, recipe, new))
    return load_directory(str(directory), token_budget=token_budget)
