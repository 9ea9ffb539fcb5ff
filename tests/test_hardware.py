"""Tests mean the same on every kind of processor: none of them asks which one it runs on."""

import ast

import pytest

from tests.conftest import REPOSITORY

ASKS = {
    "_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_avx512_vnni_supported", "_is_avx512_supported",
    "_is_avx2_supported", "get_cpu_capability", "is_bf16_supported", "processor", "machine",
}  # fmt: skip
# What a test may compare with `auto` chosen by this very machine: nothing, unless it pretends to be one.
CHOOSES = ("plan_precision", "training_precision", "hardware")


def questions(source: str) -> list[str]:
    """Where a test asks the hardware: a call of such a function, or `auto` resolved without pretending to be a machine."""
    found = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        text = ast.unparse(function)
        pretends = "pretend(" in text or "setattr(torch.cpu" in text
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr in ASKS and ast.unparse(node).startswith(("torch.", "platform.")):
                found.append(f"{function.name}: {ast.unparse(node)}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in CHOOSES and not pretends:
                found.append(f"{function.name}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tests").glob("*.py")), ids=lambda path: path.name)
def test_no_test_asks_what_it_runs_on(path):
    if path.name != "machines.py":
        assert questions(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "asks"),
    [
        ("def test_a(monkeypatch):\n    s(torch.cpu, 'x', lambda: not torch.cpu._is_avx512_bf16_supported)", True),
        ("def test_a():\n    assert plan_precision('auto', CPU)[0] == 'bfloat16'", True),
        ("def test_a():\n    if platform.machine() == 'x86_64':\n        pass", True),
        ("def test_a(monkeypatch):\n    pretend(monkeypatch, 'avx2')\n    assert plan_precision('auto', CPU)[0] == 'x'", False),
        ("def test_a():\n    assert 1 + 1 == 2", False),
    ],
)
def test_such_a_question_is_found(source, asks):
    assert bool(questions(source)) is asks
