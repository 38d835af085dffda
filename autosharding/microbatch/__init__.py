"""Microbatching as sharding over time: the batch of an unchanged step, worked through piece by piece in one loop.

The batch factor is followed through the rules of the ops, as if time were a mesh axis. What does not depend on the
batch runs once before the loop; what the loop sums up is there after it, and so the optimizer runs once. The full-batch
program is replayed on pieces, so a mean stays the mean over the whole batch and a sum a sum.
"""

from autosharding.microbatch.search import Microbatches as Microbatches
from autosharding.microbatch.search import planned as planned
from autosharding.microbatch.split import batch_of as batch_of
from autosharding.microbatch.split import microbatched as microbatched

__all__ = ["Microbatches", "batch_of", "microbatched", "planned"]
