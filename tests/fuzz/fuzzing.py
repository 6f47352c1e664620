"""Mutated input for every parser of outside data: no crash, no case over 1 s, none that takes over 256 MiB.

    PYTHONPATH=tests python -m fuzz.fuzzing --cases 10000 --seed 1 --only tar,json

A case is a seed that was changed in some places: flipped bits, pieces cut, repeated or exchanged, and words that
parsers of this kind stumble over. What a parser may raise stands beside it; anything else is a finding. Time is that of
the processor, so that other work on the machine changes nothing; a call that blocks ends the run after 60 s.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.parsers import Parser, parsers
from fuzz.seeds import (
    NUMBERS,
    ODD,
)

MAX_SECONDS = 1.0
MAX_BYTES = 256 << 20
_BLOCKED_SECONDS = 60


@dataclass
class Findings:
    """How many cases a parser had, and those that went wrong: what happened and the input."""

    num_cases: int = 0
    slowest_seconds: float = 0.0
    most_bytes: int = 0
    bad: list[tuple[str, bytes]] = field(default_factory=list)


# ---- cases


def mutate(noise: random.Random, parser: Parser) -> bytes:
    """A seed of the parser, changed in one to eight places."""
    content = bytearray(noise.choice(parser.seeds))
    words = (*parser.words, *NUMBERS, *ODD)
    for _ in range(noise.choice((1, 1, 2, 3, 8))):
        at = noise.randrange(len(content) + 1)
        piece = noise.choice((1, 2, 8, 100, 600))
        how = noise.randrange(9)
        if how == 0 and at < len(content):
            content[at] ^= 1 << noise.randrange(8)
        elif how == 1 and at < len(content):
            content[at] = noise.choice((0, 1, 0x7F, 0x80, 0xFF, noise.randrange(256)))
        elif how == 2:
            del content[at : at + piece]
        elif how == 3:
            content[at:at] = content[at : at + piece] * noise.choice((1, 2, 50))
        elif how in (4, 5):
            content[at:at] = noise.choice(words) * noise.choice((1, 1, 2, 20))
        elif how == 6:
            word = noise.choice(words)
            content[at : at + len(word)] = word
        elif how == 7:
            other = noise.choice(parser.seeds)
            start = noise.randrange(len(other) + 1)
            content[at:at] = other[start : start + piece]
        else:
            del content[at:]
        del content[1 << 20 :]
    return _with_sums(content) if content[257:262] == b"ustar" and noise.random() < 0.8 else bytes(content)


def _with_sums(content: bytearray) -> bytes:
    """The tar with sums that fit its first headers, or no change to one would be seen."""
    place = 0
    while content[place + 257 : place + 262] == b"ustar":
        content[place + 148 : place + 156] = b" " * 8
        total = sum(content[place : place + 512])
        content[place + 148 : place + 156] = b"%06o\0 " % total
        try:
            size = int(content[place + 124 : place + 135] or b"0", 8)
        except ValueError:
            break
        place += 512 + max(0, -(-size // 512)) * 512
    return bytes(content)


@contextmanager
def _bounds() -> Iterator[None]:
    """Stop a case that takes more time than it may, and the program if one blocks."""
    faulthandler.dump_traceback_later(_BLOCKED_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


class TooSlowError(BaseException):
    """A case took more time than it may. No parser may catch it."""


def _too_slow(*_: object) -> None:
    raise TooSlowError


def _peak_bytes(reset: bool = False) -> int:
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    with Path("/proc/self/status").open(encoding="ascii") as lines:
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run_cases(name: str, parser: Parser, num_cases: int, seed: int) -> Findings:
    """Run the parser on so many cases of the seed."""
    noise = random.Random(f"{seed} {name}")
    found = Findings()
    signal.signal(signal.SIGPROF, _too_slow)
    for content in parser.seeds:  # what is loaded on the first call is no fault of a case
        with suppress(Exception):
            parser.parse(content)
    gc.freeze()  # else a case may pay for looking through all that earlier tests of this process left
    for _ in range(num_cases):
        content = mutate(noise, parser)
        found.num_cases += 1
        before = _peak_bytes(reset=True)
        started = time.process_time()
        try:
            with _bounds():
                parser.parse(content)
        except parser.raises:
            pass
        except TooSlowError:
            found.bad.append((f"over {MAX_SECONDS} s", content))
        except Exception as error:  # what no parser says that it raises is what is looked for
            found.bad.append((f"{type(error).__name__}: {error}"[:200], content))
        more = _peak_bytes() - before
        if more > MAX_BYTES:
            found.bad.append((f"{more >> 20} MiB", content))
        found.slowest_seconds = max(found.slowest_seconds, time.process_time() - started)
        found.most_bytes = max(found.most_bytes, more)
    gc.unfreeze()
    return found


def main() -> int:
    """Fuzz the parsers, print a line for each, and keep what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=1000, help="of each parser")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="names of parsers, separated by commas")
    options.add_argument("--keep", default="fuzz-findings", help="folder for the inputs of findings")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    num_bad = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        known = parsers(Path(folder))
        for name in given.only.split(",") if given.only else known:
            started = time.monotonic()
            found = run_cases(name, known[name], given.cases, given.seed)
            num_bad += len(found.bad)
            print(
                f"| {name} | {found.num_cases:,} | {time.monotonic() - started:.0f} | {found.slowest_seconds:.2f} | "
                f"{found.most_bytes >> 20} | {len(found.bad)} |",
                flush=True,
            )
            for number, (what, content) in enumerate(found.bad[:20]):
                Path(given.keep).mkdir(exist_ok=True)
                kept = Path(given.keep) / f"{name.replace(' ', '-')}-{given.seed}-{number}"
                kept.write_bytes(content)
                print(f"    {what} ({kept})", flush=True)
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main())
