"""Strict settings for every test: eight virtual CPU devices, no silent rank promotion.

Compiled programs are kept until the end of the run: many tests train the same tiny network, and compiling it is most of the
work. Worker processes and the programs that tests start share them.
"""

import atexit
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="resnet_jax_tests_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest
from absl import flags

flags.FLAGS.mark_as_parsed()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_dtypes():
    """No implicit dtype promotion for one test."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left alone with them at the end."""
    long = ("test_processes", "test_resume", "test_reproduce", "test_step")
    items.sort(key=lambda item: not item.path.stem.endswith(long))
