"""Every image counts once, at any batch size and device count; scores against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import parallel
from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.data import sources
from resnet_jax.errors import Stopped
from resnet_jax.evaluation.metrics import Scores, batch_scores
from resnet_jax.evaluation.protocols import compile_eval_step, evaluate
from resnet_jax.models import resnet
from tests import helpers


class TestBatchScores:
    def test_against_numpy(self):
        rng = np.random.RandomState(0)
        logits, labels = rng.standard_normal((40, 12)).astype(np.float32), rng.randint(0, 12, 40)
        mask = rng.rand(40) < 0.7
        got = jax.jit(batch_scores)(logits, jnp.asarray(labels, jnp.int32), mask)
        rank = np.array([np.flatnonzero(np.argsort(-row) == label)[0] for row, label in zip(logits, labels, strict=True)])
        wide = logits.astype(np.float64)
        losses = np.log(np.exp(wide).sum(1)) - wide[np.arange(40), labels]
        assert int(got["count"]) == mask.sum()
        assert int(got["top1"]) == ((rank < 1) & mask).sum()
        assert int(got["top5"]) == ((rank < 5) & mask).sum()
        np.testing.assert_allclose(got["loss"], losses[mask].sum(), rtol=1e-6)

    def test_a_constant_network_is_right_only_by_its_first_classes(self):
        labels = jnp.arange(10, dtype=jnp.int32)
        got = batch_scores(jnp.zeros((10, 10)), labels, jnp.ones(10, bool))
        assert (int(got["top1"]), int(got["top5"])) == (1, 5)

    def test_fewer_than_five_classes(self):
        got = batch_scores(jnp.eye(3), jnp.arange(3, dtype=jnp.int32), jnp.ones(3, bool))
        assert (int(got["top1"]), int(got["top5"]), int(got["count"])) == (3, 3, 3)

    def test_padding_that_is_not_finite_does_not_reach_the_loss(self):
        logits = jnp.array([[1.0, 0.0], [jnp.nan, jnp.nan]])
        got = batch_scores(logits, jnp.zeros(2, jnp.int32), jnp.array([True, False]))
        assert np.isfinite(got["loss"])


@pytest.fixture(scope="module")
def network():
    source = sources.digits("val")
    model = resnet.build(ModelConfig(name="cifar_resnet8"), BatchNormConfig(), 10)
    variables = helpers.random_like(resnet.variable_shapes(model, (8, 8, 1)), np.float32)

    state = helpers.state_of(variables, optax.identity(), [80], [90], np.float32)
    logits = model.apply(variables, (source.images - np.float32(80)) / 90, train=False)
    return source, model, state, np.asarray(logits)


class TestEvaluate:
    def score(self, network, batch_size, devices, **options):
        source, model, state, _ = network
        mesh = parallel.make_mesh(devices)
        config = helpers.validated(helpers.digits_config(evaluation__batch_size=batch_size))

        on_mesh = parallel.put_replicated(state, mesh)
        return evaluate(compile_eval_step(model, 0, mesh), on_mesh, source, config, mesh, **options)

    @pytest.mark.parametrize("batch_size", [7, 64, 1024])
    @pytest.mark.parametrize("devices", [1, 2, 8])
    def test_same_counts_for_any_batch_size_and_device_count(self, network, batch_size, devices):
        source, _, _, logits = network
        got = self.score(network, batch_size, devices)
        order = np.argsort(-logits, axis=1)
        want1 = (order[:, 0] == source.labels).sum()
        want5 = (order[:, :5] == source.labels[:, None]).any(1).sum()
        assert (got.count, got.top1, got.top5) == (360, want1, want5)
        assert 0 < got.top1 < 360

    def test_says_what_it_scored(self, network):
        scores = self.score(network, 100, 1)
        assert f"({scores.top1}/360)" in str(scores)
        assert scores.as_metrics()["top1"] == scores.top1 / 360

    def test_stops_between_batches(self, network):
        with pytest.raises(Stopped):
            self.score(network, 7, 1, should_stop=lambda: True)


@pytest.mark.parametrize("devices", [1, 8])
def test_broken_images_are_not_scored_and_the_result_says_so(network, devices, capsys):
    source, model, state, logits = network
    broken = [0, 5, 359]

    class Broken(sources.ArraySource):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return sources.Record(b"", record.label, f"{index}.jpg") if index in broken else record

    mesh = parallel.make_mesh(devices)
    test = Broken(source.images, source.labels, source.classes, "x")
    config = helpers.digits_config(evaluation__batch_size=100, data__on_error="skip")
    scores = evaluate(
        compile_eval_step(model, 0, mesh), parallel.put_replicated(state, mesh), test, helpers.validated(config), mesh
    )
    kept = np.delete(np.arange(360), broken)
    assert (scores.count, scores.skipped) == (357, 3)
    assert scores.top1 == (logits.argmax(1) == source.labels)[kept].sum()
    assert str(scores).endswith("; NOT SCORED: 3 broken images")
    assert scores.as_metrics()["skipped"] == 3
    assert capsys.readouterr().out.count("skipped: ") == 3


def test_scores_add_up():
    scores = Scores()
    scores.add({"top1": 1, "top5": 2, "count": 3, "loss": 4.0})
    scores.add({"top1": 1, "top5": 1, "count": 1, "loss": 2.0})
    assert scores.as_metrics() == {"top1": 0.5, "top5": 0.75, "loss": 1.5, "images": 4}


def test_cpu_devices_run_one_program_at_a_time():
    """Two at once can wait for each other for good; elsewhere nothing waits."""
    waited = []

    class Result:
        def block_until_ready(self):
            waited.append(self)

    for devices in (1, 2):
        result = Result()
        assert parallel.one_at_a_time(result, parallel.make_mesh(devices)) is result
        assert len(waited) == devices - 1
