"""Eight virtual CPU devices; the harness beside the tests can be imported."""

import sys
from pathlib import Path

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
sys.path.insert(0, str(Path(__file__).parent))
