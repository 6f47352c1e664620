"""The whole demo in one command: pictures, a web to serve them, a release, a trained model.

    python -m pipeline.demo            everything; a second run reuses what the first one made
    python -m pipeline.demo pictures   only set up the pictures and their URL tables
    python -m pipeline.demo serve      serve them on the loopback until interrupted

Runs from the root of the repository. Writes under data/demo/. The commands it runs are the real ones, printed as a
person would type them. It stops at the first that fails, with that one's exit code.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from manifests.contract.release import Release
from manifests.errors import ConfigError, PlantMixError, RunError
from pipeline.config import read_config
from pipeline.demo.pictures import PREFERRED_PORT, prepare_web, read_marker
from pipeline.demo.server import HOST, serving

LOG = logging.getLogger("plantmix.demo")

DEMO = Path("data/demo")
WEB = DEMO / "web"
PACKAGES = DEMO / "packages"
BUILD_CONFIG = Path("configs/pipeline/demo.yaml")
TRAIN_CONFIG = Path("configs/training/demo.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Run the demo, or one of its parts; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.demo",
        description="Real pictures in, a sealed release and a trained model out, on this machine.",
        epilog="example: python -m pipeline.demo pictures",
    )
    parser.add_argument(
        "what", nargs="?", default="all", choices=["all", "pictures", "serve"], help="default: all of it"
    )
    what = parser.parse_args(arguments).what
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        {"all": run_all, "pictures": set_up, "serve": serve_on}[what]()
    except PlantMixError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("demo: interrupted; run it again and it goes on from here", file=sys.stderr)
        return 130
    return 0


def set_up(port: int | None = None) -> None:
    """Set up the pictures, with this port in their URLs."""
    prepare_web(WEB, PACKAGES, port)
    LOG.info("pictures: %s says what they are and which troubles were planted among them", WEB / "README.txt")


@contextmanager
def served() -> Iterator[int]:
    """Pictures that are set up and served, on the port of their URLs or, where that is busy, another one."""
    marker = read_marker(WEB)
    with serving(WEB, marker["port"] if marker else PREFERRED_PORT) as server:
        set_up(server.port)
        yield server.port


def serve_on() -> None:
    """Serve the pictures until interrupted."""
    with served() as port:
        LOG.info("serving %s at http://%s:%d/ until interrupted (ctrl-c)", WEB, HOST, port)
        while True:
            time.sleep(3600)


def run_all() -> None:
    """Run the demo from pictures to a trained model. The last line names the release.

    Raises: ConfigError for a wrong place or set-up; CommandError when a command failed.
    """
    for config in (BUILD_CONFIG, TRAIN_CONFIG):
        if not config.is_file():
            raise ConfigError(f"{config}: not here; run the demo from the root of the repository")
    started = time.monotonic()
    with served() as port:
        run_command("plantmix", "build", str(BUILD_CONFIG))
    work_dir = read_config(BUILD_CONFIG).work_dir
    release = Release.open(work_dir)
    run_command("dalip", "train", str(TRAIN_CONFIG), *_anew_for_another_release(release))
    run_command("dalip", "eval", str(TRAIN_CONFIG))
    run_command("plantmix", "status", work_dir)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(
        f"\nthe whole chain took {minutes} min {seconds} s\n"
        f"report: {release.path}/report.html\n"
        f"why a picture is in or out: .venv/bin/plantmix explain {work_dir} http://{HOST}:{port}/resized/plant-1.jpg\n"
        f"look at every picture: .venv/bin/plantmix browse {work_dir}\n"
        f"release: {release.path}",
        flush=True,
    )


def _anew_for_another_release(release: Release) -> list[str]:
    """`--no-resume` where the run's folder holds a model of another release: training refuses to go on with it."""
    folder = Path(yaml.safe_load(TRAIN_CONFIG.read_text(encoding="utf-8"))["output_dir"])
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    if run["identity"]["releases"]["fingerprints"] == [release.fingerprint]:
        return []
    print("\nthe release is another one than last time: the model is trained anew", flush=True)
    return ["--no-resume"]


class CommandError(RunError):
    """A command of the demo failed. It has said why itself, and its exit code becomes the demo's."""

    def __init__(self, line: str, exit_code: int) -> None:
        super().__init__(f"`{line}` failed with exit code {exit_code}; see its own message above")
        self.exit_code = exit_code


def run_command(*words: str) -> None:
    """Run one of our commands as a person would, printing the line first.

    Raises: ConfigError when the command is not installed; CommandError when it fails.
    """
    program = Path(sys.executable).parent / words[0]
    if not program.is_file():
        raise ConfigError(
            f"{program}: not installed; `make demo` installs it, or: pip install -e '.[pipeline,training]'"
        )
    line = " ".join(words)
    print(f"\n$ {line}", flush=True)
    started = time.monotonic()
    # ctrl-c reaches the command as well: it leaves what it has committed, and says so
    code = subprocess.run([str(program), *words[1:]], check=False).returncode
    if code != 0:
        raise CommandError(line, code if code > 0 else 128 - code)
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
