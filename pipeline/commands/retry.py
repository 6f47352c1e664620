"""`plantmix retry`: ask again for pictures whose failure may pass, as a timeout may; never for a final one.

Uses the configuration of the last build. What is asked again makes one round. Builds see a round once it is whole, so a
retry that is killed loses nothing: the same command goes on with it. A picture that any round fetched stays; where all
rounds failed, the newest failure counts.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from manifests.contract.catalog import Catalog
from manifests.contract.catalog_file import TAKEDOWNS_FILE, require_work_folder
from manifests.contract.outcomes import PASSING, Outcome
from manifests.contract.records import StageRecord
from manifests.services.packages import require
from pipeline.answers.tables import aligned, print_lines
from pipeline.commands import WORKDIR_HELP, Commands, add_command
from pipeline.engine.kept_config import last_config
from pipeline.engine.runner import Runner
from pipeline.engine.stopping import StopRequests
from pipeline.engine.work import BuildContext
from pipeline.fetching.settings import DECIDED_BY
from pipeline.flow import FLOW
from pipeline.stages.fetch.rounds import last_round, recipe_of

_OUTCOMES = tuple(sorted(outcome.value for outcome in PASSING))


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `retry` to the command line."""
    parser = add_command(
        commands,
        "retry",
        "ask again for the pictures that failed for a reason that may pass",
        "plantmix retry data/demo\nthen:    plantmix build configs/pipeline/demo.yaml",
        reads="catalogue and tables of the work folder, and the web, politely",
        writes="pictures and facts of this round in the same work folder; the next build takes them up",
    )
    parser.add_argument("dir", metavar="DIR", help=WORKDIR_HELP)
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    require_work_folder(args.dir)
    require("a round of fetching", "pycurl", "threadpoolctl")
    stop = StopRequests()
    with stop.listening(), Catalog.open(args.dir) as catalog:
        round_done = run_round(Runner(last_config(catalog), FLOW, catalog, stop), catalog)
    print_lines(describe_round(round_done))
    return 0


def why_final(outcome: Outcome) -> str:
    """Why an outcome is not asked again, and what to do where something can be done."""
    if outcome in DECIDED_BY:
        keys = " or ".join(f"fetch.{key}" for key in DECIDED_BY[outcome])
        return f"was decided by the configuration: change {keys} and run `plantmix build`, which asks again"
    return "will not be retried: another request would end the same way"


@dataclass(frozen=True)
class RoundDone:
    """A whole round, and the fetch stage before and after it."""

    number: int  # 0 when there was nothing to ask
    num_asked: int
    before: StageRecord
    after: StageRecord


def run_round(runner: Runner, catalog: Catalog) -> RoundDone:
    """Run one round, or the rest of one that was interrupted."""
    number, recipe = 0, ""

    def begin(context: BuildContext, before: StageRecord) -> bool:
        nonlocal number, recipe
        recipe = recipe_of(context.config.fetch.image)
        if not catalog.rounds.find_open(recipe) and not num_of(before):
            return False
        context.fetch_round = catalog.rounds.begin(recipe, _OUTCOMES, after=last_round(context))
        number = context.fetch_round.number
        return True

    before, after = runner.redo("fetch", begin)
    if not number:
        return RoundDone(0, 0, before, after)
    catalog.rounds.close(recipe, number)
    parts = [part for step in ("download", "local") for part in catalog.parts_of(after.fingerprint, step)]
    asked = [part for part in parts if part.notes["round"] == number]
    return RoundDone(number, sum(part.funnel.num_in for part in asked if part.funnel), before, after)


def num_of(stage: StageRecord) -> int:
    """Return how many rows of a fetch stage ended for a reason that may pass."""
    return sum(stage.funnel.reasons.get(name, 0) for name in _OUTCOMES)


def describe_round(done: RoundDone) -> list[str]:
    """Describe the changes of a round, outcome by outcome, in lines that a person reads."""
    before, after = done.before, done.after
    if not done.number:
        nothing = f"nothing to retry: of {before.funnel.num_in:,} rows none failed for a reason that may pass"
        failed = sorted(before.funnel.reasons.items(), key=lambda item: (-item[1], item[0]))
        rest = [(name, num) for name, num in failed if num]
        return [nothing, *(f"  {num:,} {name}: {why_final(Outcome(name))}" for name, num in rest)]
    was, now = ({"ok": stage.funnel.num_kept, **stage.funnel.reasons} for stage in (before, after))
    names = ["ok", *sorted((was.keys() | now.keys()) - {"ok"}, key=lambda name: (-was.get(name, 0), name))]
    rows = [(name, was.get(name, 0), now.get(name, 0), _what_was_done(name, was.get(name, 0))) for name in names]
    follow = "run `plantmix build` with the same configuration: later stages take up the change"
    num_taken = num_of(before) - done.num_asked
    return [
        f"round {done.number}: asked again for {done.num_asked:,} rows, {now['ok'] - was['ok']:,} more pictures",
        *([f"{num_taken:,} more were not asked: {TAKEDOWNS_FILE} says that they stay out"] if num_taken > 0 else []),
        "",
        *aligned(("outcome", ">before", ">after", ""), rows),
        "",
        follow if before.notes != after.notes else "nothing that later stages look at has changed",
    ]


def _what_was_done(name: str, num_before: int) -> str:
    if name == "ok" or not num_before:
        return ""
    return "asked again" if name in _OUTCOMES else f"not asked: {why_final(Outcome(name))}"
