"""`python -m tests.conformance`: every harness that JAX ships, under the plan and under every strategy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from tests.conformance import report
from tests.conformance.catalog import groups, harnesses, spread
from tests.conformance.run import MESHES, Outcome, Seen, run

CLEAR_EVERY = 50
"""Harnesses after which JAX forgets what it compiled, none of which comes again."""


def main(argv: Sequence[str]) -> int:
    """Run, print, and say by the exit status whether all passed."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    args = _parser().parse_args(argv)
    done = report.read(args.results)
    chosen = _chosen(args)
    outcomes: list[Outcome] = []
    seen: Seen = {}
    for n, harness in enumerate(chosen):
        known = done.get(harness.fullname)
        if known is None or (args.retry and known.status == "failed"):
            known = run(harness, args.mesh or MESHES, args.seed, seen)
            report.append(args.results, known)
            if n % CLEAR_EVERY == 0:
                jax.clear_caches()
        outcomes.append(known)
        if args.verbose or known.status == "failed":
            print(f"{n + 1}/{len(chosen)} {known.status} {known.name} {known.reason}", file=sys.stderr, flush=True)
    print(report.summary(outcomes))
    if args.output is not None:
        args.output.write_text(report.markdown(outcomes, jax.__version__))
    return any(o.status == "failed" for o in outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--groups", nargs="*", help="groups to run, of: " + ", ".join(groups()))
    parser.add_argument("--limit", type=int, help="a fixed spread of about this many harnesses over all groups")
    parser.add_argument("--only", help="harnesses whose name contains this")
    parser.add_argument("--mesh", type=_mesh, action="append", help="2x2; may be given again (default 2x2 and 4x2)")
    parser.add_argument("--shard", type=_part, default=(0, 1), help="i/n: the i-th of n parts, from 0")
    parser.add_argument("--seed", type=int, default=0, help="of the harnesses' arguments")
    parser.add_argument("--results", type=Path, help="a file of outcomes; what it holds is not run again")
    parser.add_argument("--output", type=Path, help="a page of markdown to write the tables to")
    parser.add_argument("--retry", action="store_true", help="run again what failed according to --results")
    parser.add_argument("--verbose", action="store_true", help="a line for each harness")
    return parser


def _mesh(text: str) -> dict[str, int]:
    return dict(zip("xyz", map(int, text.split("x")), strict=False))


def _part(text: str) -> tuple[int, int]:
    i, n = map(int, text.split("/"))
    return i, n


def _chosen(args: argparse.Namespace) -> list[Any]:
    found = list(harnesses()) if args.limit is None else spread(args.limit)
    if args.groups:
        found = [h for h in found if h.group_name in args.groups]
    if args.only:
        found = [h for h in found if args.only in h.fullname]
    part, parts = args.shard
    return found[part::parts]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
