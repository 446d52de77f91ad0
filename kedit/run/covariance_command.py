"""Second moments of models over corpora: python -m kedit.stats build|verify|list.

build makes what an editor needs on a model (`build model=gpt2-xl dataset=zsre editor=memit`, as for kedit), or what is
named (`build model=local model.path=DIR --layers 3 4 --corpus FILE --tokens 100000`). verify reads all that the cache
holds; its exit status is 1 where something is wrong.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from kedit.common.errors import InputError
from kedit.common.paths import ROOT
from kedit.common.terminal import use_safe_output
from kedit.covariance.estimate import Covariance, Moment, faults, kept_moments
from kedit.run.cell import load_model, one_sentence

log = logging.getLogger(__name__)


def build(given: argparse.Namespace) -> None:
    """Make what is missing; one line for each layer's folder."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", given.overrides)
    with one_sentence():
        wanted = statistics(cfg, given)
        lm = load_model(cfg)
        layers = given.layers
        if layers is None:
            touched = instantiate(cfg.editor, _convert_="all").edited_parameters(lm)
            layers = [i for i in range(lm.anatomy.n_layers) if lm.anatomy.mlp_out.format(i) + ".weight" in touched]
        for layer, home in zip(layers, wanted.build(lm, layers), strict=True):
            out().print(f"layer {layer}: {home}", markup=False)


def statistics(cfg: DictConfig, given: argparse.Namespace) -> Covariance:
    """The editor's, with what is given beside it."""
    own = dict(cfg.editor.get("statistics") or {"corpus": None, "tokens": 0})
    if given.layers is None and "statistics" not in cfg.editor:
        raise InputError("this editor needs no second moments; give editor=memit or another that does, or --layers")
    changed = {name: getattr(given, name) for name in ("corpus", "tokens", "window") if getattr(given, name)}
    return Covariance(
        **{name: value for name, value in (own | changed).items() if name != "_target_"} | {"files": None}
    )


def verify() -> int:
    """One line for each; the exit status."""
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
            out().print(f"{m.path}: damaged; it is built again when it is asked for", markup=False)


def out() -> Console:
    return Console(soft_wrap=True, highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kedit.stats", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("build", help="make what is missing")
    new.add_argument("overrides", nargs="*", help="of the config, as for kedit: model=world editor=memit ...")
    new.add_argument("--layers", type=int, nargs="+", help="instead of those that the editor changes")
    new.add_argument("--corpus", help="wikipedia, world, or a file (.jsonl with a field text, or plain text)")
    new.add_argument("--tokens", type=int)
    new.add_argument("--window", type=int, help="tokens that are read together")
    commands.add_parser("verify", help="hashes, shape, symmetry, singular values, tokens of all that are kept")
    commands.add_parser("list", help="what is kept")
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
