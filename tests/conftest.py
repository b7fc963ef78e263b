"""Strict settings for every test: eight virtual CPU devices, no silent rank promotion.

Compiled programs are kept until the end of the run: many tests train the same tiny network, and compiling it is most of the
work. Worker processes and the programs that tests start share them.
"""

import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

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

from tests.helpers import ROOT, free_port

flags.FLAGS.mark_as_parsed()
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(200_000, 50, 100)  # tracing makes many objects; looking through them as usual takes a tenth of the time


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


@pytest.fixture(scope="session")
def gcs_emulator():
    """Variables of the environment that lead the client libraries to an emulator with one bucket, named bucket."""
    url = f"http://localhost:{(port := free_port())}"
    command = [sys.executable, "-m", "tests.gcs", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_GCE_CHECK": "true",  # credentials are not looked for
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # the kind of the bucket is not asked for
        }
        process.kill()


@pytest.fixture
def bucket(gcs_emulator, monkeypatch, request):
    """`gs://` and a folder for one test, in an emulated bucket; programs that the test starts reach it too."""
    for name, value in gcs_emulator.items():
        monkeypatch.setenv(name, value)
    return f"gs://bucket/{request.node.name}"


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker is left alone with them at the end."""
    long = ("test_processes", "test_resume", "test_reproduce", "test_step")
    items.sort(key=lambda item: not item.path.stem.endswith(long))
