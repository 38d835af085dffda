"""Tests; `python -m tests.conformance` runs JAX's own."""
