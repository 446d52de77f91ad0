"""Any locale: every text file has a named encoding, and a terminal that cannot show a letter gets a plain one."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, run_kedit
from transformers import AutoModelForCausalLM

from kedit.common.paths import PACKAGE
from kedit.lm import LM

OPENS = {"open", "read_text", "write_text", "FileHandler", "fdopen", "NamedTemporaryFile"}
PROCESSES = {"run", "Popen", "check_output"}


def unnamed(source: str) -> Iterator[int]:
    """Lines that open a text file, or read a process's text, without naming the encoding."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        owner = getattr(call.func, "value", None)
        of = getattr(owner, "id", getattr(owner, "attr", ""))
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in named or of in ("adapter", "os", "safetensors"):
            continue
        if name in OPENS and not _is_binary(call, name, named):
            own = isinstance(call.func, ast.Name) and name != "open"  # kedit.common.text_files, which names it
            yield from [] if own else [call.lineno]
        if name in PROCESSES and of == "subprocess" and ("text" in named or "universal_newlines" in named):
            yield call.lineno


def _is_binary(call: ast.Call, name: str, named: dict[str | None, ast.expr]) -> bool:
    mode = named.get("mode") or next(iter(call.args[1 if isinstance(call.func, ast.Name) else 0 :]), None)
    return name in ("open", "fdopen") and isinstance(mode, ast.Constant) and "b" in str(mode.value)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("path.read_text()", 1),
        ("path.write_text(text)", 1),
        ("open(path)", 1),
        ("path.open('w')", 1),
        ("logging.FileHandler(path)", 1),
        ("subprocess.run(command, text=True)", 1),
        ("open(path, 'rb')", 0),
        ("open(path, encoding='utf-8')", 0),
        ("path.read_text(encoding='utf-8')", 0),
        ("write_text(path, text)", 0),
    ],
)
def test_what_counts_as_unnamed(source: str, found: int) -> None:
    assert len(list(unnamed(source))) == found


def test_every_text_file_has_a_named_encoding() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
    assert [f"{path}:{line}" for path, source in sources.items() for line in unnamed(source)] == []


LOCALES = {"an ASCII terminal": {"PYTHONIOENCODING": "ascii"}, "the C locale": {"PYTHONUTF8": "0", "LC_ALL": "C"}}
LETTERS = [("Zoë", "Kraków ✓", "Zürich"), ("Łukasz", "Zürich ✗", "Kraków")]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, _world_lm: LM) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run in the C locale, on records with letters that ASCII does not have."""
    folder = tmp_path_factory.mktemp("locale")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(deepcopy(SHAPES["llama"])).save_pretrained(folder / "small")
    _world_lm.text.tokenizer.save_pretrained(folder / "small")
    records = [
        {"subject": s, "prompt": f"{s} lives in", "target_new": new, "ground_truth": old, "locality": {}}
        for s, new, old in LETTERS
    ]
    (folder / "f.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    given = ["model=local", "model.path=small", "dataset=zsre", "dataset.path=f.json", "T=2", "editor=ft_m"]
    return folder, run_kedit(folder, *given, "editor.layers=[1]", **LOCALES["the C locale"])


def test_a_run_in_the_c_locale(shown: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = shown
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "(unedited)" in done.stdout
    [rows] = (folder / "runs").rglob("rows.jsonl")
    assert "Kraków ✓" in rows.read_text(encoding="utf-8")


@pytest.mark.parametrize("locale", LOCALES)
@pytest.mark.parametrize(
    ("command", "part"),
    [
        (["table", "adhoc"], "ft_m"),
        (["table", "adhoc", "--format=markdown"], "ft_m"),
        (["status", "adhoc"], "done"),
        (["examples", "adhoc"], "Krakow v"),
        (["examples", "adhoc", "--markdown"], "Krakow v"),
        (["plot", "adhoc", "retention"], "retention.png"),
        (["data", "f.json"], "2 cases"),
    ],
)
def test_what_shows_runs_in_any_locale(
    shown: tuple[Path, subprocess.CompletedProcess[str]], locale: str, command: list[str], part: str
) -> None:
    env = {**os.environ, "KEDIT_RUNS": "runs", "COLUMNS": "120", **LOCALES[locale]}
    line = [sys.executable, "-m", f"kedit.{command[0]}", *command[1:]]
    done = subprocess.run(line, env=env, cwd=shown[0], capture_output=True, encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert part in done.stdout


def test_a_command_line_that_the_locale_cannot_read(tmp_path: Path) -> None:
    done = run_kedit(tmp_path, 'dataset.path="é.json"', **LOCALES["the C locale"])
    assert done.returncode == 1
    assert "set LC_ALL=C.UTF-8, or PYTHONUTF8=1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
