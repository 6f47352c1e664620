"""Small helps around DuckDB: texts as literals, rows as dicts, a connection that a stranger may ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def literals(texts: Iterable[str]) -> str:
    """Texts as SQL literals, with commas between them."""
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


def rows_of(connection: Any, query: str, values: Any = ()) -> list[dict[str, Any]]:
    """The rows of a query. `values` are its parameters, in order or by name."""
    return list(connection.sql(query, params=values).to_arrow_table().to_pylist())


def lock_down(connection: Any, memory_mb: int, spill: str, what: str, allowed: Iterable[str]) -> None:
    """Let DuckDB reach nothing but `allowed` (`what`: allowed_paths or allowed_directories), with settings that stay.

    It loads no extension. What does not fit into memory goes into the folder `spill`.
    """
    for setting, value in {
        "memory_limit": literals([f"{memory_mb}MB"]),
        "temp_directory": literals([spill]),
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        what: f"[{literals(allowed)}]",
        "enable_external_access": "false",
        "lock_configuration": "true",
    }.items():
        connection.execute(f"SET {setting} = {value}")
