"""A trained network for the matrices that an editor changes."""

from collections.abc import Sequence

from kedit.common.errors import InputError
from kedit.editors.hypernetwork.networks import UpdateNetwork
from kedit.editors.training.artefact import Trained


def load_network(network: UpdateNetwork, modules: Sequence[str], trained: Trained) -> None:
    """Fill the network with what was learnt. Raises InputError if that was for other matrices or another network."""
    learnt_for = trained.about.get("modules", [])
    if sorted(learnt_for) != sorted(modules):
        raise InputError(
            f"{trained.folder}: trained for {_listed(learnt_for)}, but this editor changes {_listed(modules)}; give "
            "what was trained for this model and these layers"
        )
    if list(learnt_for) != list(modules):
        raise InputError(
            f"{trained.folder}: its matrices stand in another order ({_listed(learnt_for)}) than the model's; convert "
            "it again"
        )
    trained.fill(network)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
