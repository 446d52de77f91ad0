"""What enters some modules in a pass that goes no further than the last of them."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from torch import Tensor, nn

from kedit.lm.tail import _hook

Key = TypeVar("Key")


class _Last(Exception):
    """The last module is reached: nothing above it is run."""


def entering(modules: Mapping[Key, nn.Module], run: Callable[[], object]) -> dict[Key, Tensor]:
    """What each module is given during `run`, which is left where the last of them begins."""
    entered: dict[Key, Tensor] = {}

    def keep(key: Key) -> Any:
        def before(module: nn.Module, args: tuple) -> None:
            entered[key] = args[0]
            if len(entered) == len(modules):
                raise _Last

        return before

    with ExitStack() as hooks:
        for key, module in modules.items():
            hooks.enter_context(_hook(module.register_forward_pre_hook(keep(key))))
        try:
            run()
        except _Last:
            return entered
    raise RuntimeError("the pass never came to one of the modules")
