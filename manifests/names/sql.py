"""Names in SQL: the one place where a name of a column, a table or a json key is quoted. Pure."""

from __future__ import annotations


def identifier(name: str) -> str:
    """Return a name of a column or table as SQL takes it, whatever signs it holds."""
    return '"' + name.replace('"', '""') + '"'


def json_text(column: str, key: str) -> str:
    """Return SQL of the text that a json object in `column` has under `key`, whatever signs the key holds."""
    pointer = "/" + key.replace("~", "~0").replace("/", "~1").replace("'", "''")
    return f"json_extract_string({column}, '{pointer}')"
