"""Search by words and by picture with a trained model: `dalip search VECTORS --serve` in a process of its own.

A question is a line to that process, and the answer a line back. So no model and no torch is loaded here. The process
ends when its input is closed, so also when browse is killed. If it has died, the next question starts it again.
A picture is passed as a file in the session's private folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, RunError
from manifests.services.child import Command

NEAREST = 1000  # of the vectors; filters choose among them
SECONDS = 120.0  # for one answer; the first one waits for the model to load
KEPT_ANSWERS = 32
SHOWN_CHARS = 600  # of the last line of a process that ended

Hits = Sequence[tuple[str, float]]


class ModelSearch:
    """Vectors of `dalip embed`, asked through a process; `with` ends it. Safe for threads: one question at a time."""

    def __init__(self, vectors: str, model: str | None, private: Path) -> None:
        """Raise ConfigError where no vectors lie."""
        if not (Path(vectors).is_file() or any(Path(vectors).glob("*.parquet"))):
            raise ConfigError(f"--search {vectors}: no vectors are there; make them with `dalip embed`")
        self.vectors = vectors
        self._command = [sys.executable, "-P", "-m", "training.cli", "search", vectors, "--serve"]
        self._command += ["--top", str(NEAREST), *(["--model", model] if model else [])]
        self._folder = private / "search"
        self._folder.mkdir()
        self._running: Command | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self.by_words = functools.lru_cache(KEPT_ANSWERS)(lambda words: self._ask(text=words))
        self.by_picture = functools.lru_cache(KEPT_ANSWERS)(self._ask_with)

    def __enter__(self) -> ModelSearch:
        self._running = self._start()  # it loads the model while the index of the images is made
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running is not None:
            self._end(self._running)

    def _ask_with(self, content: bytes) -> Hits:
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".jpg") as picture:
            picture.write(content)
            picture.flush()
            return self._ask(image=picture.name)

    def _ask(self, **question: str) -> Hits:
        """Raise RunError when the process cannot start, ends, is silent for SECONDS, or refuses the question."""
        with self._asking:
            running = self._running
            if running is None or running.process.poll() is not None:
                if running is not None:
                    self._end(running)
                running = self._running = self._start()
            questions: Any = running.process.stdin
            try:
                questions.write(json.dumps(question).encode() + b"\n")
                questions.flush()
                line = self._answers.get(timeout=SECONDS)
            except queue.Empty:
                self._end(running)
                raise RunError(f"the search gave no answer in {SECONDS:g} s and was ended; search again") from None
            except OSError:
                line = b""
            if not line.endswith(b"\n"):  # nothing, or a line that was cut short
                running.process.wait()
                raise RunError(self._why_ended(running))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(f"the search refused this: {answer['error']}")
        return [(hit["name"], hit["score"]) for hit in answer["hits"]]

    def _end(self, running: Command) -> int:
        questions: Any = running.process.stdin
        running.process.kill()
        with contextlib.suppress(OSError):  # what was not read yet cannot be written any more
            questions.close()
        self._reader.join()
        return running.end()

    def _start(self) -> Command:
        answers = self._answers = queue.SimpleQueue()
        running = Command(self._command, stdin=subprocess.PIPE, start_new_session=True)

        def read() -> None:
            with running.output as lines:
                for line in lines:
                    answers.put(line)
            answers.put(b"")

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        return running

    def _why_ended(self, running: Command) -> str:
        code = self._end(running)
        if code < 0:
            return f"the search process was killed (signal {-code}); the next search starts it again"
        words = running.last_line[:SHOWN_CHARS] or "it said nothing"
        return f"the search process ended (exit code {code}): {words}"
