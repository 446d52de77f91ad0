"""Covariance of MLP keys (second moments over a corpus): python -m kedit.stats build|verify|list.

build computes what an editor needs on a model (`build model=gpt2-xl dataset=zsre editor=memit`, as for kedit), or what
the options say (`build model=local model.path=DIR --layers 3 4 --corpus FILE --tokens 100000`). verify reads all that
the cache has; its exit status is 1 if something is wrong.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from kedit.common.errors import InputError
from kedit.common.terminal import use_safe_output
from kedit.covariance.estimate import Covariance, Moment, faults, kept_moments
from kedit.run.cell import load_model, one_sentence
from kedit.run.composition import composed
from kedit.run.options import check_arguments, check_part, layer_count

log = logging.getLogger(__name__)


def build(given: argparse.Namespace) -> None:
    """Compute what is missing; prints one line for each layer's folder."""
    cfg = composed(given.overrides)
    with one_sentence():
        wanted = statistics(cfg, given)
        lm = load_model(cfg)
        layers = given.layers
        if layers is None:
            edited = instantiate(cfg.editor, _convert_="all").edited_parameters(lm)
            layers = [i for i in range(lm.anatomy.n_layers) if lm.anatomy.mlp_out.format(i) + ".weight" in edited]
        for layer, home in zip(layers, wanted.build(lm, layers), strict=True):
            out().print(f"layer {layer}: {home}", markup=False)


def statistics(cfg: DictConfig, given: argparse.Namespace) -> Covariance:
    """The covariance that the editor asks for, with what the command line changes. Raises InputError if an option of
    the model, the editor or the command line is wrong, before the model is loaded."""
    for part in ("model", "editor"):
        check_part(part, OmegaConf.to_container(cfg[part], resolve=True))
    if given.layers is None and "statistics" not in cfg.editor:
        raise InputError("this editor needs no second moments; give editor=memit or another that does, or --layers")
    own = dict(cfg.editor.get("statistics") or {"corpus": None, "tokens": 0})
    changed = {name: getattr(given, name) for name in ("corpus", "tokens", "window")}
    own |= {name: value for name, value in changed.items() if value is not None}
    options = {name: value for name, value in own.items() if name != "_target_"} | {"files": None}
    check_arguments("--", Covariance, options)
    check_layers(given.layers or [], layer_count(cfg.model))
    return Covariance(**options)


def check_layers(layers: Sequence[int], n_layers: int | None) -> None:
    """Raises InputError if one is given twice, or is none of the model's (None: not known yet)."""
    wrong = [layer for layer in layers if layers.count(layer) > 1 or not 0 <= layer < (n_layers or layer + 1)]
    if wrong:
        known = f"the model has layers 0 to {n_layers - 1}; " if n_layers else ""
        raise InputError(f"--layers {' '.join(map(str, layers))}: {known}give different layers, counted from 0")


def verify() -> int:
    """Print one line for each; returns the exit status."""
    wrong = 0
    for moment in kept_moments():
        found = faults(moment)
        wrong += bool(found)
        out().print(f"{moment.path}: {'; '.join(found) or 'good'}", markup=False)
    return int(wrong > 0)


def grid(moments: Sequence[Moment]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("model", "layer", "corpus", "tokens", "window", "dtype", "MB", "built", "folder"):
        table.add_column(
            column, no_wrap=True, justify="right" if column in ("layer", "tokens", "window", "MB") else "left"
        )
    for m in moments:
        place = (m.about["model"], str(m.key["layer"]), m.about["corpus"], f"{m.about['read']['tokens']:,}")
        built = time.strftime("%Y-%m-%d %H:%M", time.localtime(m.about["built"]))
        dtype = m.key["dtype"].removeprefix("torch.")
        table.add_row(*place, str(m.key["window"]), dtype, f"{m.size / 1e6:.1f}", built, m.path.name)
    return table


def show() -> None:
    moments = sorted(kept_moments(), key=lambda m: (m.about.get("model", ""), m.key.get("layer", -1)))
    table = grid([m for m in moments if m.legible])
    whole = Measurement.get(out(), out().options.update(max_width=1000), table).maximum
    Console(width=max(out().width, whole)).print(table)
    for m in moments:
        if not m.legible:
            out().print(f"{m.path}: damaged; it is computed again when a run needs it", markup=False)


def out() -> Console:
    return Console(soft_wrap=True, highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kedit.stats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("build", help="compute what is missing")
    new.add_argument("overrides", nargs="*", help="overrides of the config, as for kedit: model=world editor=memit ...")
    new.add_argument("--layers", type=int, nargs="+", help="these layers instead of those that the editor changes")
    new.add_argument("--corpus", help="wikipedia, world, or a file (.jsonl with a field text, or plain text)")
    new.add_argument("--tokens", type=int)
    new.add_argument("--window", type=int, help="number of tokens in one forward pass")
    commands.add_parser(
        "verify", help="check hashes, shape, symmetry, singular values and tokens of all that are cached"
    )
    commands.add_parser("list", help="list what is cached")
    return parser.parse_args()


def main() -> None:
    use_safe_output()
    given = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for noisy in ("httpx", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if given.command == "build":
            build(given)
        elif given.command == "list":
            show()
        else:
            sys.exit(verify())
    except (InputError, HydraException) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
