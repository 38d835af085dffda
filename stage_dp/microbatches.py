"""Numbers of microbatches: those that divide what must be divided."""

from __future__ import annotations

from stage_dp.errors import StageError


def check_microbatches(microbatches: int, batch: int) -> None:
    """Raise `StageError` unless `batch` examples divide into that many equal microbatches."""
    if batch < 1:
        raise StageError(f"A batch has at least one example; {batch} were given.")
    if microbatches >= 1 and batch % microbatches == 0:
        return
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    below = max((n for n in divisors if n <= microbatches), default=1)
    above = min((n for n in divisors if n >= microbatches), default=batch)
    nearest = " and ".join(str(n) for n in dict.fromkeys((below, above)))
    raise StageError(
        f"{microbatches} microbatches were asked for, but a batch of {batch} examples does not divide into as many "
        f"equal ones. The nearest numbers that divide it: {nearest}."
    )
