"""What we take of open_clip is there in the installed version; a version that lacks it is one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from manifests.errors import ConfigError
from manifests.services import open_clip_api


def test_every_name_is_there() -> None:
    for name in open_clip_api.MODULE_OF:
        assert getattr(open_clip_api, name) is not None
    assert (open_clip_api.config_folder() / "ViT-B-16.json").is_file()


@pytest.mark.slow
def test_wandb_is_imported_by_those_who_log_to_it() -> None:
    code = "import sys, manifests.services.open_clip_api as o; o.create_model; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}; import wandb"], check=True)


def test_a_version_without_a_name_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip_api.MODULE_OF, "load_openai_model_of_old", "open_clip.no_such_module")
    with pytest.raises(ConfigError, match=r"open_clip_torch [\d.]+ has no open_clip.no_such_module.load_openai"):
        open_clip_api.load_openai_model_of_old  # noqa: B018
