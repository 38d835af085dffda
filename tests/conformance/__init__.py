"""JAX's own harnesses of its primitives, run under our executor: `python -m tests.conformance`."""
