"""A pause of Python's garbage collector while a large graph is built or reduced.

Nodes, tables and edges are all kept; the collector, which knows it not, looks through them again and again as their
number grows: a third of the time it takes to capture, rule and price 40,000 ops, or to read 100,000 edges. Afterwards
all of it counts as old; otherwise the collector would look through it once more for each such pause.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Nothing is collected inside, be it a `with` or a function decorated by this."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            _count_as_old()
            gc.enable()


def _count_as_old() -> None:
    """Move all objects to the oldest generation unexamined, unless the program itself keeps some frozen."""
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()
