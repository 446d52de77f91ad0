"""What is trained before the first edit: killed, continued and spread over processes, it ends with the same weights."""

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn

from kedit import world
from kedit.editors.hypernetwork import Hypernetwork
from kedit.editors.hypernetwork.networks import Mend, Sum
from kedit.editors.hypernetwork.objective import Editing, EditLoss, HypernetworkObjective
from kedit.editors.training import checkpoint, trainer
from kedit.editors.training.examples import training_edits
from kedit.editors.training.trainer import Objective, Sums, Trainer, Training, Update
from kedit.evaluation.evaluator import Evaluator
from kedit.lm import LM
from kedit.lm.matrices import matrices_of
from kedit.loop.runner import experiment
from kedit.loop.settings import single
from kedit.loop.tracker import Tracker

DATA = world.cases(edits=4, limit=4, seed=1, train=True, train_people=24)
QUICK: dict[str, Any] = {"edits_per_update": 3, "validate_every": 6, "validation_edits": 2, "checkpoint_s": 0.0}


def mend(**training: Any) -> Hypernetwork:
    learnt = Training(lr=1e-4, **{"edits": 21, **QUICK, **training})
    network = Mend(rank=4, rate=1e-2, rate_lr=1e-3)
    return Hypernetwork(network=network, training=learnt, loss=EditLoss(), aggregation=Sum(), last_layers=1)


def weights(editor: Hypernetwork, lm: LM) -> dict[str, torch.Tensor]:
    editor.fit(lm, DATA.train)
    return load_file(Path(editor.fit_report()["folder"]) / "network.safetensors")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(n: int, call: Callable[..., Any], last: Callable[..., Any] = die) -> Callable[..., Any]:
    """`call`, but the n-th time `last`."""
    seen = [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen[0] += 1
        return (last if seen[0] == n else call)(*args, **kwargs)

    return counted


def half_a_file(tensors: Any, path: Path, **_: Any) -> None:
    path.write_bytes(b"\x40\x00\x00\x00")
    die()


def killed(lm: LM, where: str, n: int) -> None:
    """The same training in a process of its own, killed the n-th time that it comes there."""
    child = os.fork()
    if child == 0:
        if where == "update":
            Trainer._update = at(n, Trainer._update)  # type: ignore[method-assign]
        elif where == "checkpoint":
            checkpoint.save_file = at(n, checkpoint.save_file, half_a_file)
        else:  # between what is kept and the checkpoint that knows of it
            trainer.os.replace = at(n, os.replace)  # type: ignore[attr-defined]
        try:
            mend().fit(lm, DATA.train)
        finally:
            os._exit(1)  # not killed
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_training_that_is_killed_three_times_ends_with_the_same_weights(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "straight"))
    straight = mend()
    wanted = weights(straight, lm)
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path / "killed"))
    for where, n in [("update", 2), ("checkpoint", 3), ("replace", 4)]:
        killed(lm, where, n)
        assert [*(tmp_path / "killed/hypernetwork").glob(".partial-*")]
    continued = mend()
    updates: list[int] = []
    real = Trainer._update
    monkeypatch.setattr(Trainer, "_update", lambda self, number: (updates.append(number), real(self, number)))
    found = weights(continued, lm)
    assert 0 < updates[0] < 7
    assert updates[-1] == 6
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert continued.fit_report()["curve"] == straight.fit_report()["curve"]
    assert not [*(tmp_path / "killed/hypernetwork").glob(".partial-*")]


# --- the loop --------------------------------------------------------------------------------------------------------


class Line(Objective):
    """Learns a number: the mean of what the edits say. Edit 3 says nothing that is finite."""

    trained_edits, held_out_edits = 4, 1

    def __init__(self, said: list[float], held_out: list[float]):
        self.said, self.seen = said, iter(held_out)
        self.module = nn.Module()
        self.module.value = nn.Parameter(torch.zeros(1))

    def backward(self, update: Update) -> Sums:
        loss = sum(((self.module.value - self.said[i]).square().sum() for i in update.edits), torch.zeros(()))
        (loss / len(update.edits)).backward()
        return {"loss": float(loss.detach())}

    def evaluate(self, held_out: Any) -> Sums:
        return {"loss": next(self.seen)}


def trained(folder: Path, objective: Line, **options: Any) -> dict[str, Any]:
    options = {"lr": 0.1, "edits": 8, "edits_per_update": 2, "validate_every": 2, **options}
    return Trainer(objective, Training(**options), folder, "", cpu=True).run("line")


def test_what_had_the_lowest_validation_loss_is_kept(tmp_path: Path) -> None:
    objective = Line([1.0] * 4, [3.0, 1.0, float("nan"), 2.0])
    told = trained(tmp_path, objective)
    assert told["kept"]["edits"] == 4
    assert float(objective.module.value.detach()) == pytest.approx(0.2, abs=1e-3)
    assert [point["edits"] for point in told["curve"]] == [2, 4, 6, 8]


@pytest.mark.parametrize(("decay", "wanted"), [(False, [0.1] * 4), (True, [0.1, 0.075, 0.05, 0.025])])
def test_learning_rates_decay_to_nothing(tmp_path: Path, decay: bool, wanted: list[float]) -> None:
    training = Training(lr=0.1, edits=8, edits_per_update=2, validate_every=2, decay=decay)
    loop, rates = Trainer(Line([1.0] * 4, [1.0] * 4), training, tmp_path, "", cpu=True), list[float]()
    loop.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    loop.run("line")
    assert rates == pytest.approx(wanted)


def test_who_listens_hears_each_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.time, "perf_counter", itertools.count(0.0).__next__)  # type: ignore[attr-defined]
    heard: list[dict[str, Any]] = []
    training = Training(lr=0.1, edits=8, edits_per_update=2, validate_every=4)
    Trainer(
        Line([1.0] * 4, [0.5, 0.7]), training, tmp_path, "", cpu=True, listen=lambda told: heard.append({**told})
    ).run("line")
    assert [told["training_edits"] for told in heard] == [4, 8]
    assert [told["training_loss"] for told in heard] == [0.5, 0.7]
    assert [told["training_lowest_loss"] for told in heard] == [0.5, 0.5]
    assert [told["training_seconds_left"] for told in heard] == [1.0, 0.0]
    assert heard[1]["training_of_edits"] == 8


def test_a_runs_tracker_hears_of_the_training(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path))

    class Heard(Tracker):
        def __init__(self) -> None:
            self.of: list[Any] = []

        def training(self, progress: Any) -> None:
            self.of.append(progress["training_edits"])

    tracker = Heard()
    quick = Evaluator(kinds=["reliability"], fluency_tokens=0)
    experiment(lm, single(DATA.cases[:1]), mend(), quick, train=DATA.train, tracker=tracker)
    assert tracker.of


def test_patience_ends_a_training(tmp_path: Path) -> None:
    told = trained(tmp_path, Line([1.0] * 4, [3.0, 1.0, 2.0, 2.0]), patience=2)
    assert told["edits"] == 6


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    objective = Line([1.0, 1.0, 1.0, float("inf")], [1.0] * 4)
    told = trained(tmp_path, objective, edits_per_update=1, validate_every=1, edits=4)
    assert told["skipped"] == 1
    assert torch.isfinite(objective.module.value).all()


# --- several processes -----------------------------------------------------------------------------------------------


def gradients(lm: LM, folder: Path) -> None:
    """Of one update of six edits, and the statistics that it observes."""
    train = training_edits(DATA.train)
    modules = matrices_of(lm, "mlp", [3])
    torch.manual_seed(0)
    network = Mend(rank=4, rate=1e-2).build(lm, modules)
    editing = Editing(lm=lm, modules=modules, positions="all", network=network, aggregation=Sum())
    training = Training(lr=1e-4, edits=6, edits_per_update=6, validate_every=6)
    made = Trainer(HypernetworkObjective(editing, EditLoss(), training, train, train), training, folder, "", cpu=True)
    made._update(0)
    if made.processes.is_main_process:
        found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        save_file(found | dict(network.named_buffers()), folder / f"{made.processes.num_processes}")


def worker(lm: LM, folder: Path, rank: int, port: int) -> int:
    """A process such as accelerate launches; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in place.items()} | {"ACCELERATE_USE_CPU": "true"}
            PartialState._reset_state()
            gradients(lm, folder)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_two_processes_have_the_gradients_of_one(lm: LM, tmp_path: Path) -> None:
    """Over gloo, as in `accelerate launch --num_processes 2`."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert [os.waitpid(child, 0)[1] for child in [worker(lm, tmp_path, rank, port) for rank in (0, 1)]] == [0, 0]
    gradients(lm, tmp_path)
    alone, shared = load_file(tmp_path / "1"), load_file(tmp_path / "2")
    assert alone.keys() == shared.keys()
    for name, value in alone.items():
        assert (shared[name] - value).abs().max() <= 1e-6 * max(1.0, float(value.abs().max())), name
    assert sum(bool(value.any()) for value in alone.values()) > 5
