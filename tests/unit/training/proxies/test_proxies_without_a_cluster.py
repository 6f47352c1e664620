"""`dalip proxies --launcher ray` without a cluster: what is missing or wrong is said; errors come out as they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from training_runs import make_settings, write_values

from manifests.errors import ConfigError, IntegrityError, RunError
from training.cli import main
from training.proxies.on_ray import _unwrap, each_result_on_ray


def test_without_ray_the_way_to_get_it_is_named(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # counts as missing, also where a test before has loaded it
    with pytest.raises(ConfigError, match=r'--launcher ray needs Ray \(ray is missing\): pip install "ray>=2.56"'):
        next(each_result_on_ray(str, [1], make_settings(config), None))


def test_an_address_without_ray_is_refused(
    config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["proxies", write_values(tmp_path, config), "--ray-address", "head:6379"]) == 2
    assert "--ray-address goes with --launcher ray" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ConfigError, RunError, IntegrityError])
def test_the_error_of_a_process_comes_out_as_it_is(kind: type[Exception]) -> None:
    inner = kind("what, which, how many")
    wrapped = RuntimeError("of Ray")
    wrapped.__cause__ = inner
    assert _unwrap(RayTaskError("work", "a traceback", wrapped)) is inner
    assert _unwrap(inner) is inner


def test_an_error_of_rays_own_keeps_its_words() -> None:
    error = _unwrap(RayTaskError("work", "the node died", RuntimeError("lost")))
    assert isinstance(error, RunError)
    assert "the run on Ray failed: " in str(error)
    assert "the node died" in str(error)
