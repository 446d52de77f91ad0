"""Where prompts go: through the editor's memory, which gives each its route, and whether anything is edited at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from kedit.common.errors import InputError
from kedit.lm.forward import Forward
from kedit.lm.route import Route, Router, unrouted


class Routing(Forward):
    """Passes of prompts that an editor's memory has routed."""

    @property
    def route(self) -> Router:
        """What sends prompts through an editor's memory; `restore` unsets it."""
        return self.changes.route

    @route.setter
    def route(self, router: Router) -> None:
        self.changes.route = router

    @property
    def changed(self) -> list[str]:
        """Also the modules of interventions, and "route"."""
        acting = [] if self.interventions.off else [one.module for one in self.changes.interventions]
        routes = [] if self.route is unrouted else ["route"]
        return list(dict.fromkeys([*super().changed, *acting, *routes]))

    def check_unedited(self, purpose: str) -> None:
        """Raises InputError if the model is edited: `purpose` needs the unedited one."""
        if changed := self.changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise InputError(
                f"{purpose} needs the unedited model, but this one has been edited ({', '.join(changed[:3])}{more}); "
                "call lm.restore() first"
            )

    @contextmanager
    def unedited(self) -> Iterator[None]:
        route, self.route = self.route, unrouted
        try:
            with super().unedited():
                yield
        finally:
            self.route = route

    def routed(
        self, prompts: Sequence[str], keys: Sequence[str] | None = None, variants: Sequence[int] = ()
    ) -> Sequence[Route]:
        """Where each prompt goes. `keys`: what it is looked up by, if that is not the prompt itself. `variants`: which
        variant of the model reads it; inside a `scope`, or where there are none, all go the same way."""
        keys = prompts if keys is None else keys
        if self.variants is None or self.variants.current is not None:
            return self.route(prompts, keys)
        found: dict[int, Route] = {}
        for variant, changes in enumerate(self.variants.changes):
            mine = [i for i, of in enumerate(variants) if of == variant]
            routes = changes.route([prompts[i] for i in mine], [keys[i] for i in mine]) if mine else ()
            found |= {i: replace(route, variant=variant) for i, route in zip(mine, routes, strict=True)}
        return [found[i] for i in range(len(prompts))]

    def _routes(self, prompts: Sequence[str] | Sequence[Route]) -> list[Route]:
        """Prompts that are no Routes yet are routed."""
        given = [prompt for prompt in prompts if isinstance(prompt, Route)]
        return given if len(given) == len(prompts) else list(self.routed([str(prompt) for prompt in prompts]))
