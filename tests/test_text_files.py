"""Every text file has a named encoding: what a run writes is the same under any locale."""

import ast
from collections.abc import Iterator

import pytest

from kedit.common.paths import PACKAGE

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
