"""What the runs came to, as lines of text, and as a file of one JSON line each that a later run goes on from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.conformance.run import Outcome


def read(path: Path | None) -> dict[str, Outcome]:
    """Outcomes by harness; none where there is no file yet."""
    if path is None or not path.exists():
        return {}
    found = [Outcome(**json.loads(line)) for line in path.read_text().splitlines() if line]
    return {o.name: o for o in found}


def append(path: Path | None, outcome: Outcome) -> None:
    """One more line."""
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts, the share of each group that has a sharded strategy, the reasons of skips, the failures."""
    return "\n".join([*_groups(outcomes), "", *_skips(outcomes), *_failures(outcomes), "", _total(outcomes)])


def _groups(outcomes: Sequence[Outcome]) -> Iterable[str]:
    yield f"{'group':32}{'passed':>8}{'failed':>8}{'skipped':>9}{'sharded':>9}{'planned':>9}{'strategies':>12}{'s':>8}"
    for group in dict.fromkeys(o.group for o in outcomes):
        mine = [o for o in outcomes if o.group == group]
        count = Counter(o.status for o in mine)
        cells = f"{count['passed']:8}{count['failed']:8}{count['skipped']:9}{_share(mine):>9}{_planned(mine):>9}"
        yield f"{group:32}{cells}{sum(o.strategies for o in mine):12}{sum(o.seconds for o in mine):8.1f}"


def _share(outcomes: Sequence[Outcome]) -> str:
    ran = [o for o in outcomes if o.status == "passed"]
    return f"{sum(o.sharded > 0 for o in ran) / len(ran):.0%}" if ran else "-"


def _planned(outcomes: Sequence[Outcome]) -> str:
    ran = [o for o in outcomes if o.status == "passed"]
    return f"{sum(o.planned for o in ran) / len(ran):.0%}" if ran else "-"


def _skips(outcomes: Sequence[Outcome]) -> Iterable[str]:
    reasons = Counter((o.group, o.reason) for o in outcomes if o.status == "skipped")
    for (group, reason), count in reasons.items():
        yield f"skipped {count:4}  {group}: {reason}"


def _failures(outcomes: Sequence[Outcome]) -> Iterable[str]:
    for o in outcomes:
        if o.status == "failed":
            yield f"\nFAILED {o.name}\n{o.reason}"


def _total(outcomes: Sequence[Outcome]) -> str:
    count = Counter(o.status for o in outcomes)
    same = sum(o.status == "passed" and bool(o.reason) for o in outcomes)
    tried, seconds = sum(o.strategies for o in outcomes), sum(o.seconds for o in outcomes)
    return (
        f"{len(outcomes)} harnesses: {count['passed']} passed ({same} the same as another), {count['failed']} failed, "
        f"{count['skipped']} skipped by JAX; {_share(outcomes)} with a sharded strategy, {_planned(outcomes)} planned "
        f"sharded; {tried} strategies in {seconds:.0f} s of processor time"
    )
