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


HEADER = ("group", "passed", "failed", "skipped", "sharded", "of divisible", "planned", "strategies", "processor s")
TEXT = """# Conformance

Made by `python -m tests.conformance --results outcomes.jsonl --output benchmarks/conformance.md`: every harness that
JAX {version} ships of its primitives, on virtual CPU devices, on meshes of 2 x 2 and 4 x 2: the values of `jax.jit` on
one device beside those of the 0-1 program's plan, and of every strategy of every operator forced in turn; equal for
integers, within JAX's own tolerance else.

- sharded: the share of passed harnesses with at least one strategy that splits a factor of the group's own operator.
- of divisible: the same, among those in which some mesh axis divides some dim of that operator's arrays. What is left
  are the dims of matrices, results of another size than their operands, and updates whose order counts.
- planned: the share in which the plan splits something; the devices that it is made for are slow, their links quick.
- strategies: how many were tried, over all operators and meshes.

"""


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts, the share of each group that has a sharded strategy, the reasons of skips, the failures."""
    lines = [f"{row[0]:32}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in (HEADER, *_rows(outcomes))]
    return "\n".join([*lines, "", *_skips(outcomes), *_failures(outcomes), "", total(outcomes)])


def markdown(outcomes: Sequence[Outcome], version: str) -> str:
    """The same as a page; `version` is JAX's."""
    lines = [HEADER, ("---",) * len(HEADER), *_rows(outcomes)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    rest = "".join(f"- {line}\n" for line in (*_skips(outcomes), *_failures(outcomes)))
    return TEXT.format(version=version) + f"{total(outcomes)}.\n\n{rest}\n{table}"


def _rows(outcomes: Sequence[Outcome]) -> Iterable[tuple[str, ...]]:
    for group in dict.fromkeys(o.group for o in outcomes):
        mine = [o for o in outcomes if o.group == group]
        count = Counter(o.status for o in mine)
        yield (
            group,
            *(str(count[status]) for status in ("passed", "failed", "skipped")),
            *_shares(mine),
            str(sum(o.strategies for o in mine)),
            f"{sum(o.seconds for o in mine):.1f}",
        )


def _shares(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """Sharded of all that passed, sharded of the divisible, planned sharded of all."""
    ran = [o for o in outcomes if o.status == "passed"]
    sharded = [o.sharded > 0 for o in ran]
    return _share(sharded), _share([o.sharded > 0 for o in ran if o.divisible]), _share([o.planned for o in ran])


def _share(held: Sequence[bool]) -> str:
    return f"{sum(held) / len(held):.0%}" if held else "-"


def _skips(outcomes: Sequence[Outcome]) -> Iterable[str]:
    reasons = Counter((o.group, o.reason) for o in outcomes if o.status == "skipped")
    for (group, reason), count in reasons.items():
        yield f"skipped {count} of {group}: {reason}"


def _failures(outcomes: Sequence[Outcome]) -> Iterable[str]:
    for o in outcomes:
        if o.status == "failed":
            yield f"FAILED {o.name}\n{o.reason}\n"


def total(outcomes: Sequence[Outcome]) -> str:
    """One sentence of everything."""
    count = Counter(o.status for o in outcomes)
    same = sum(o.status == "passed" and bool(o.reason) for o in outcomes)
    sharded, of_divisible, planned = _shares(outcomes)
    tried, seconds = sum(o.strategies for o in outcomes), sum(o.seconds for o in outcomes)
    return (
        f"{len(outcomes)} harnesses: {count['passed']} passed ({same} the same as another), {count['failed']} failed, "
        f"{count['skipped']} skipped by JAX; {sharded} with a sharded strategy ({of_divisible} of the divisible), "
        f"{planned} planned sharded; {tried} strategies in {seconds:.0f} s of processor time"
    )
