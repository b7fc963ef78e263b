"""The CPU as a device: one per core where the batch allows it, memory in huge pages."""

import os
import subprocess
import sys

import pytest

from resnet_jax import host
from resnet_jax.config import BatchNormConfig, DataConfig, TrainConfig
from tests import helpers


@pytest.mark.parametrize(
    ("batch_size", "group", "size", "cores", "devices"),
    [
        (128, None, 224, 1, 1),
        (128, None, 224, 2, 2),
        (20, None, 224, 8, 5),
        (7, None, 224, 4, 1),
        (256, None, 224, 64, 8),
        (96, 32, 224, 8, 6),
        (64, 32, 224, 3, 2),
        (128, None, 32, 8, 4),
        (64, None, 8, 8, 1),
    ],
)
def test_as_many_devices_as_share_the_batch(batch_size, group, size, cores, devices):
    config = TrainConfig(
        batch_size=batch_size, batch_norm=BatchNormConfig(group_size=group), data=DataConfig(image_size=size)
    )
    assert host.cpu_devices(config, cores) == devices


@pytest.mark.parametrize(("flags", "devices"), [("", 3), ("--xla_force_host_platform_device_count=4", 4)])
def test_devices_that_are_asked_for(flags, devices):
    code = """
from resnet_jax import host
from resnet_jax.config import TrainConfig
host.use_all_cores(TrainConfig(devices=3))
import jax
print(len(jax.devices()))
"""
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    output = subprocess.check_output([sys.executable, "-c", code], cwd=helpers.ROOT, env=env, text=True)
    assert int(output) == devices


class TestHugePages:
    @pytest.fixture
    def started(self, monkeypatch, tmp_path):
        """Starts of the program again, as (arguments, environment)."""
        calls = []
        monkeypatch.setattr(host, "_HUGE_PAGES", tmp_path / "enabled")
        monkeypatch.setattr(os, "execv", lambda path, args: calls.append((args, os.environ["GLIBC_TUNABLES"])))
        monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "train.py", "--config=a b"])
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        return calls

    def test_asks_where_they_are_given_on_request(self, started, tmp_path):
        (tmp_path / "enabled").write_text("always [madvise] never\n")
        host.use_huge_pages()
        command = [sys.executable, "-X", "utf8", "train.py", "--config=a b"]
        assert started == [(command, "glibc.malloc.hugetlb=1")]
        host.use_huge_pages()
        assert len(started) == 1, "only once"

    @pytest.mark.parametrize("enabled", ["[always] madvise never\n", "always madvise [never]\n", None])
    def test_otherwise_not(self, started, tmp_path, enabled):
        if enabled:
            (tmp_path / "enabled").write_text(enabled)
        host.use_huge_pages()
        assert started == []
