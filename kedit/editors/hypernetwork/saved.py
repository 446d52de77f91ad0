"""A trained network as files: weights as safetensors, and what it is for as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from kedit.common.errors import InputError
from kedit.editors.hypernetwork.networks import UpdateNetwork

WEIGHTS, ABOUT = "network.safetensors", "about.json"


def load_network(network: UpdateNetwork, modules: Sequence[str], folder: Path) -> None:
    """Fill the network with what was learnt. Raises InputError if that was for other matrices or another network."""
    learnt_for = json.loads((folder / ABOUT).read_text()).get("modules", [])
    if sorted(learnt_for) != sorted(modules):
        raise InputError(
            f"{folder}: trained for {_listed(learnt_for)}, but this editor changes {_listed(modules)}; give what was "
            "trained for this model and these layers"
        )
    if list(learnt_for) != list(modules):
        raise InputError(
            f"{folder}: its matrices stand in another order ({_listed(learnt_for)}) than the model's; convert it again"
        )
    try:
        values = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS}: no safetensors file ({error}); train or convert it again") from error
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    wrong = [name for name in {**wanted, **values} if name not in values or wanted.get(name) != values[name].shape]
    if wrong:
        given = tuple(values[wrong[0]].shape) if wrong[0] in values else "none"
        here = tuple(wanted[wrong[0]]) if wrong[0] in wanted else "none"
        raise InputError(
            f"{folder / WEIGHTS}: {wrong[0]} is {given}, but editor.network asks for {here}; give the network the "
            "numbers that it was trained with"
        )
    network.load_state_dict(values)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
