"""Convolution, batch norm, pooling and shortcuts against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import formulation, layers
from resnet_jax.models.blocks import Shortcut
from resnet_jax.models.layers import BatchNorm, Conv


def randn(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape)


def reference_conv(x, kernel, stride):
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bhwc,hwcf->bf", patch, kernel)
    return out


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_convolution_with_either_formulation(x64, monkeypatch, size, stride, side, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = randn(2, side, side, 3), randn(size, size, 3, 5, seed=1)
    conv = Conv(5, size, stride, dtype=jnp.float64)
    got = conv.apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(got, reference_conv(x, kernel, stride), atol=1e-12)


@pytest.mark.parametrize(("size", "stride", "side"), [(1, 1, 4), (1, 2, 5), (3, 1, 2), (3, 1, 3), (3, 2, 5), (7, 2, 6)])
def test_formulations_have_the_same_gradients(x64, monkeypatch, size, stride, side):
    x, kernel = jnp.asarray(randn(2, side, side, 3)), jnp.asarray(randn(size, size, 3, 5, seed=1))

    results = []
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)

        def value(x, kernel):  # a new function each time: JAX remembers the trace of an old one
            return jnp.sin(formulation.convolve(x, kernel, stride)).sum()

        is_conv = "conv_general_dilated" in str(jax.make_jaxpr(value)(x, kernel))
        assert is_conv == (backend == "gpu")
        results.append(jax.grad(value, (0, 1))(x, kernel))
    for cpu, gpu in zip(*results, strict=True):
        np.testing.assert_allclose(cpu, gpu, atol=1e-12)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_relu_with_either_formulation(monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 3.0, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(formulation.relu(x), [0, 0, 0, 0, 3, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x: 5 * formulation.relu(x)))(x[:-1]), [0, 0, 0, 0, 5, 5])


class TestMaxPool:
    @pytest.mark.parametrize("padding", ["caffe", "torch"])
    @pytest.mark.parametrize("side", [7, 8, 9, 112])
    @pytest.mark.parametrize("backend", ["cpu", "gpu"])
    def test_values(self, x64, monkeypatch, padding, side, backend):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        x = randn(1, side, side, 2)
        got = layers.max_pool(jnp.asarray(x), padding)
        if padding == "torch":
            padded, out = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf), (side - 1) // 2 + 1
        else:  # Caffe rounds the number of windows up and cuts them off at the border
            padded, out = x, int(np.ceil((side - 3) / 2)) + 1
        want = np.array(
            [[padded[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(out)] for i in range(out)]
        )
        np.testing.assert_array_equal(got[0], want)

    @pytest.mark.parametrize("padding", ["caffe", "torch"])
    def test_both_formulations_have_the_same_gradient(self, x64, monkeypatch, padding):
        x, cotangent = jnp.asarray(randn(2, 12, 12, 3)), jnp.asarray(randn(2, 6, 6, 3, seed=1))
        gradients = []
        for backend in ("cpu", "gpu"):
            monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
            gradients.append(jax.grad(lambda x: (layers.max_pool(x, padding) * cotangent).sum())(x))
        np.testing.assert_allclose(*gradients, atol=1e-14)
        assert np.count_nonzero(gradients[0]) > 100

    @pytest.mark.parametrize("flags", ["", "--a=1 --xla_gpu_exclude_nondeterministic_ops=false"])
    def test_a_gpu_uses_the_usual_operation(self, monkeypatch, flags):
        assert "select_and_scatter" in self.gradient_for_gpus(monkeypatch, flags)

    @pytest.mark.parametrize("flags", ["--xla_gpu_deterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops --b=2"])
    def test_a_deterministic_gpu_gets_nothing_that_xla_refuses_there(self, monkeypatch, flags):
        assert "select_and_scatter" not in self.gradient_for_gpus(monkeypatch, flags)

    @staticmethod
    def gradient_for_gpus(monkeypatch, flags):
        """What XLA for GPUs gets; under jit, where constants of jax.numpy are traced."""
        monkeypatch.setenv("XLA_FLAGS", flags)
        with formulation.compiling_for("gpu"):
            gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x, "caffe").astype(jnp.float32).sum()))
            return gradient.trace(jnp.ones((1, 8, 8, 2), jnp.bfloat16)).lower(lowering_platforms=("cuda",)).as_text()


class TestBatchNorm:
    @pytest.mark.parametrize("group", [None, 2, 4, 8])
    def test_training_against_numpy(self, x64, group):
        x = 3 * randn(8, 4, 5, 6) + 100  # a large mean: one-pass variance would lose digits
        scale, bias = randn(6, seed=1), randn(6, seed=2)
        mean, var = randn(6, seed=3), 1 + randn(6, seed=4) ** 2
        norm = BatchNorm(group_size=group, momentum=0.8, epsilon=1e-3, dtype=jnp.float64)
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        y, updated = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        want = []
        for part in np.split(x, 8 // (group or 8)):
            centred = part - part.mean((0, 1, 2))
            want.append(centred / np.sqrt(part.var((0, 1, 2)) + 1e-3) * scale + bias)
        np.testing.assert_allclose(y, np.concatenate(want), atol=1e-10)
        flat = x.reshape(-1, 6)
        np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.8 * mean + 0.2 * flat.mean(0), atol=1e-10)
        # Unbiased, and of all images together: the mean of the groups' variances would be smaller.
        np.testing.assert_allclose(updated["batch_stats"]["var"], 0.8 * var + 0.2 * flat.var(0, ddof=1), atol=1e-9)

    def test_testing_against_numpy(self, x64):
        x, scale, bias, mean = randn(2, 3, 3, 4), randn(4, seed=1), randn(4, seed=2), randn(4, seed=3)
        var = 1 + randn(4, seed=4) ** 2
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
        y = BatchNorm(dtype=jnp.float64).apply(variables, jnp.asarray(x), train=False)
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, atol=1e-12)

    def test_variance_survives_a_large_mean_in_float32(self):
        x = (1000 + randn(16, 8, 8, 3)).astype(np.float32)
        norm = BatchNorm()
        variables = norm.init(jax.random.key(0), jnp.asarray(x), train=False)
        _, updated = norm.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        want = 0.9 + 0.1 * x.astype(np.float64).reshape(-1, 3).var(0, ddof=1)
        np.testing.assert_allclose(updated["batch_stats"]["var"], want, rtol=1e-5)

    def test_statistics_of_bfloat16_are_float32(self, strict_dtypes):
        x = jnp.asarray(randn(64, 8, 8, 2), jnp.bfloat16)
        norm = BatchNorm(dtype=jnp.bfloat16)
        variables = norm.init(jax.random.key(0), x, train=False)
        y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
        assert y.dtype == jnp.bfloat16
        assert updated["batch_stats"]["mean"].dtype == jnp.float32
        want = 0.9 + 0.1 * np.asarray(x, np.float64).reshape(-1, 2).var(0, ddof=1)
        np.testing.assert_allclose(updated["batch_stats"]["var"], want, rtol=1e-5)

    def test_frozen_is_an_affine_map_with_no_gradient_of_its_own(self, x64):
        x, scale, bias, mean = randn(4, 3, 3, 2), randn(2, seed=1), randn(2, seed=2), randn(2, seed=3)
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": np.array([2.0, 3.0])}}
        norm = BatchNorm(frozen=True, dtype=jnp.float64)

        def value(params, x):
            y, updated = norm.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return (y**2).sum(), (y, updated)

        (gradient, dx), (y, _) = jax.grad(value, (0, 1), has_aux=True)(variables["params"], jnp.asarray(x))
        np.testing.assert_allclose(y, (x - mean) / np.sqrt(np.array([2.0, 3.0]) + 1e-5) * scale + bias, atol=1e-12)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))
        assert np.abs(dx).min() > 0

    def test_a_group_that_does_not_divide_the_batch_is_refused(self):
        x = jnp.zeros((6, 2, 2, 1))
        variables = BatchNorm().init(jax.random.key(0), x, train=False)
        with pytest.raises(ValueError, match="groups of 4 do not divide a batch of 6"):
            BatchNorm(group_size=4).apply(variables, x, train=True, mutable=["batch_stats"])


class TestShortcut:
    def run(self, option, features, stride, x, zero_channels="end"):
        shortcut = Shortcut(option, features, stride, zero_channels, Conv, BatchNorm)
        variables = shortcut.init(jax.random.key(0), x, train=False)
        return shortcut.apply(variables, x, train=False), variables

    @pytest.mark.parametrize("side", [8, 9])
    def test_a_subsamples_and_appends_zero_channels(self, side):
        x = jnp.asarray(randn(2, side, side, 4), jnp.float32)
        y, variables = self.run("A", 6, 2, x)
        assert not variables
        np.testing.assert_array_equal(y[..., :4], x[:, ::2, ::2])
        assert y.shape == (2, (side + 1) // 2, (side + 1) // 2, 6)
        assert not y[..., 4:].any()

    def test_a_with_zeros_on_both_sides(self):
        x = jnp.asarray(randn(2, 8, 8, 4), jnp.float32)
        y, _ = self.run("A", 8, 2, x, zero_channels="both")
        np.testing.assert_array_equal(y[..., 2:6], x[:, ::2, ::2])
        assert not y[..., :2].any()
        assert not y[..., 6:].any()

    @pytest.mark.parametrize("option", ["A", "B"])
    def test_identity_where_nothing_changes(self, option):
        x = jnp.asarray(randn(2, 8, 8, 4), jnp.float32)
        y, variables = self.run(option, 4, 1, x)
        assert not variables
        np.testing.assert_array_equal(y, x)

    def test_c_always_projects(self):
        x = jnp.asarray(randn(2, 8, 8, 4), jnp.float32)
        _, variables = self.run("C", 4, 1, x)
        assert variables["params"]["conv"]["kernel"].shape == (1, 1, 4, 4)
