"""How a store is asked, what a file's stamp is, which errors may pass: `manifests/stores` answers, and no other room.

Its own subject is `pipeline/fetching`: polite requests to strangers' hosts, where a refusal is an outcome of a picture.
The same holds for the API of GBIF, and for what the Hub's own package does.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORES = "manifests/stores/"
Find = Callable[[Sequence[ast.AST]], Iterator[str]]

CLIENTS = (
    *("fsspec", "s3fs", "gcsfs", "adlfs", "boto3", "botocore", "aiobotocore", "azure", "smart_open", "pyarrow.fs"),
    *("aiohttp", "httpx", "requests", "urllib3", "urllib.request", "http.client", "pycurl", "huggingface_hub"),
)
MAY_ASK = {
    "pipeline/fetching/": "polite requests",
    "pipeline/sources/biology/gbif/api.py": "polite requests",
    "manifests/services/model_hub.py": "the Hub's own package",
    "manifests/publishing/hub.py": "the Hub's own package",
    "manifests/services/packages.py": "url2pathname, which asks nobody",
    "pipeline/sources/folder.py": "glob_translate, which asks nobody",
    "pipeline/store/sql.py": "lends our client to DuckDB",
    "pipeline/engine/node_check.py": "runs where PlantMix may be missing",
}

OF_STAMPS = {"ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "LastModified", "last_modified", "mtime"}
MAY_SEE_TIMES = {
    "pipeline/browse/index_process.py": "which index was used last",
    "manifests/contract/reader.py": "when a build last committed, to say so",
    "pipeline/releases/folder_checks.py": "the time of the takedown list, as the catalogue recorded it",
    "training/record/run_folder.py": "when a training began",
}

OF_RETRIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "httpx", "requests", 408, 425, 429, 503}
MAY_JUDGE = {
    "pipeline/fetching/": "polite requests",
    "pipeline/sources/biology/gbif/": "polite requests",
    "pipeline/browse/": "answers with such a status",
    "pipeline/engine/node_check.py": "which package a node lacks",
    "manifests/services/packages.py": "which extra brings a package",
}
MAY_WAIT = {
    "pipeline/engine/gates.py": "for an actor of Ray that is started again",
    "pipeline/sources/biology/gbif/": "polite requests",
    "training/record/checkpoint.py": "for the lock of a folder",
}


def clients_in(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """What opens a store: an import of a client, or its import by name."""
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        yield from (name for name in names if any(name == one or name.startswith(f"{one}.") for one in CLIENTS))


def stamps_in(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """What tells one content of a file from another: its times, and what stores call its version."""
    for node in nodes:
        if isinstance(node, ast.Attribute) and node.attr.startswith(("st_mtime", "st_ctime")):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in OF_STAMPS:
            yield node.value


def tables_in(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """What sorts errors: names of client packages, and statuses of HTTP."""
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str | int) and node.value in OF_RETRIES:
            yield str(node.value)


def retries_in(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """What asks again: a loop that meets an error and sleeps, and a list of waits."""
    for node in nodes:
        if isinstance(node, ast.For | ast.While):
            inner = list(ast.walk(node))
            sleeps = any(isinstance(one, ast.Call) and ast.unparse(one.func).endswith("sleep") for one in inner)
            if sleeps and any(isinstance(one, ast.ExceptHandler) for one in inner):
                yield f"the loop at line {node.lineno}"
        elif isinstance(node, ast.Assign) and len(_numbers(node.value)) > 1:
            yield from (one.id for one in node.targets if isinstance(one, ast.Name) and "SECONDS" in one.id)


def _numbers(value: ast.expr) -> list[float]:
    elements = value.elts if isinstance(value, ast.Tuple | ast.List) else []
    return [each.value for each in elements if isinstance(each, ast.Constant) and isinstance(each.value, float)]


@pytest.fixture(scope="module")
def modules() -> dict[str, list[ast.AST]]:
    """The nodes of each module but those of `manifests/stores`: read and parsed once for all questions."""
    paths = [path for package in ("pipeline", "manifests", "training") for path in (ROOT / package).rglob("*.py")]
    return {
        name: list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        for path in paths
        if not (name := str(path.relative_to(ROOT))).startswith(STORES)
    }


@pytest.mark.parametrize(
    ("find", "allowed"),
    [(clients_in, MAY_ASK), (stamps_in, MAY_SEE_TIMES), (tables_in, MAY_JUDGE), (retries_in, MAY_WAIT)],
)
def test_stores_are_asked_in_one_room(find: Find, allowed: dict[str, str], modules: dict[str, list[ast.AST]]) -> None:
    found = {name: list(find(nodes)) for name, nodes in modules.items() if not name.startswith(tuple(allowed))}
    assert {name: signs for name, signs in found.items() if signs} == {}, "ask manifests/stores"


@pytest.mark.parametrize(
    ("find", "line"),
    [
        (clients_in, "import s3fs"),
        (clients_in, "from urllib import request"),
        (clients_in, "fs = importlib.import_module('fsspec').filesystem('s3')"),
        (stamps_in, "changed = path.stat().st_mtime_ns"),
        (stamps_in, "version = info['ETag']"),
        (tables_in, "passing = {429, 503}"),
        (tables_in, "is_passing = type(error).__module__.startswith('botocore')"),
        (retries_in, "while True:\n  try:\n    ask()\n  except OSError:\n    time.sleep(1)"),
        (retries_in, "_WAITS_SECONDS = (0.5, 2.0)"),
    ],
)
def test_a_second_answer_is_seen(find: Find, line: str) -> None:
    assert list(find(list(ast.walk(ast.parse(line)))))
