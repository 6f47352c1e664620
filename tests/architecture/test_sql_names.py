"""Names that come from a user's table reach SQL through one function: a column called `a"b` must not end its quotes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUOTES_NO_SQL = {
    "pipeline/answers/preflight.py": "a line of YAML",
    "pipeline/commands/plan/tables.py": "a message",
    "pipeline/planning/runs/checks.py": "a message",
    "pipeline/planning/runs/run_table.py": "a message",
    "pipeline/stages/pack/record.py": "json members of a sample",
    "manifests/contract/catalog_file.py": "json lines of the snapshot",
    "manifests/drawing/panels.py": "SVG",
    "training/cli.py": "a line of Python",
    "training/evaluation/model_card.py": "a line of Python",
    "training/model/exports.py": "a line of Python",
}


def quoted_by_hand(source: str) -> Iterator[int]:
    """Lines of f-strings that put a value between double quotes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        texts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
        for place, text in enumerate(texts):
            before = texts[place - 1] if place else None
            after = texts[place + 1] if place + 1 < len(texts) else None
            if text is None and str(before or "").endswith('"') and str(after or "").startswith('"'):
                yield node.lineno


def test_a_name_in_sql_is_quoted_by_one_function() -> None:
    found = {}
    for package in ("pipeline", "manifests", "training"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            lines = list(quoted_by_hand(path.read_text(encoding="utf-8")))
            if lines and name not in QUOTES_NO_SQL:
                found[name] = lines
    assert found == {}, "write {identifier(name)} of manifests/names/sql.py"


def test_what_is_quoted_by_hand_is_found() -> None:
    assert list(quoted_by_hand("sql = f'SELECT \"{name}\" FROM t'")) == [1]
    assert list(quoted_by_hand("sql = f'SELECT {identifier(name)} FROM t'")) == []
