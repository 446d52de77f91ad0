"""What is hung into a model for the length of a pass, and taken out again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import masking_utils

ModuleName = TypeVar("ModuleName")


@contextmanager
def hook(handle: Any) -> Iterator[None]:
    """Inside, what the handle stands for is registered."""
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def instead(module: nn.Module, forward: Any) -> Iterator[None]:
    """Inside, calling the module runs this instead."""
    own = module.__dict__.get("forward")  # accelerate's, where it places the module
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Inside, transformers takes a row without a mask for one text. It would otherwise look at the positions whether
    several are packed into one, and a GPU would be waited for in every pass."""
    own = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = own


def given(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The hidden state that a module is called with."""
    return args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))


class _Last(Exception):
    """The last module is reached: nothing above it is run."""


def _leave_after(left: list[Tensor], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    left.append(output[0] if isinstance(output, tuple) else output)
    raise _Last


def leaving(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a module puts out during `run`, which is left where the module ends. Hooks registered before are seen."""
    left: list[Tensor] = []
    with hook(module.register_forward_hook(partial(_leave_after, left))):
        try:
            run()
        except _Last:
            return left[0]
    raise RuntimeError("the pass never came to the module")


def _keep_entered(
    entered: dict[ModuleName, Tensor],
    wanted: int,
    key: ModuleName,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """What the module is given; when that of as many modules as `wanted` is known, the pass ends."""
    entered[key] = given(args, kwargs)
    if len(entered) == wanted:
        raise _Last


def entering(modules: Mapping[ModuleName, nn.Module], run: Callable[[], object]) -> dict[ModuleName, Tensor]:
    """What each module is given during `run`, which is left where the last of them begins."""
    entered: dict[ModuleName, Tensor] = {}
    with ExitStack() as hooks:
        for key, module in modules.items():
            keep = partial(_keep_entered, entered, len(modules), key)
            hooks.enter_context(hook(module.register_forward_pre_hook(keep, with_kwargs=True)))
        try:
            run()
        except _Last:
            return entered
    raise RuntimeError("the pass never came to one of the modules")
