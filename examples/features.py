"""A classifier as a feature extractor: the stages by name, and a linear classifier on what the last one gives.

    python examples/features.py --root=flowers --init=akamaster:resnet20-12fca82f.th

`root` has train/<class>/* and val/<class>/*; `init` is any of the formats in the README (default: random weights, for
comparison). The network here is CIFAR's ResNet-20 at 32 x 32; with other weights give --network, --size and the settings
that they were trained with. It is frozen, batch norm too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from sklearn.linear_model import LogisticRegression

from resnet_jax.config import BatchNormConfig, ModelConfig
from resnet_jax.data.augment import CentreCrop
from resnet_jax.data.decode import decode
from resnet_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.data.sources import FolderSource
from resnet_jax.errors import one_line_errors
from resnet_jax.models import resnet
from resnet_jax.weights import formats

ROOT = flags.DEFINE_string("root", None, "Folder with train/<class>/* and val/<class>/*.", required=True)
INIT = flags.DEFINE_string("init", None, "Weights, FORMAT:PATH; default: random ones.")
NETWORK = flags.DEFINE_string("network", "cifar_resnet20", "Network.")
SIZE = flags.DEFINE_integer("size", 32, "Height and width of the network's input.")


def load_images(split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, centre crops as network inputs, and their classes."""
    source, crop = FolderSource(ROOT.value, split), CentreCrop(SIZE.value, SIZE.value)
    records = [source[index] for index in range(len(source))]
    pixels = np.stack([crop(decode(record.image, record.name), None)["image"] for record in records])
    images = (pixels - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    return images.astype(np.float32), np.array([record.label for record in records])


def main(_: list[str]) -> None:
    settings = ModelConfig(name=NETWORK.value, stride_placement="3x3", max_pool="torch", zero_channels="both")
    model = resnet.build(settings, BatchNormConfig(frozen=True), num_classes=2)  # the head is not used
    shape = (SIZE.value, SIZE.value, 3)
    variables = resnet.init_variables(model, shape, seed=0)
    if INIT.value:  # a classifier's weights are the extractor's, by the same names: leave the head out, map nothing
        loaded = formats.load(INIT.value, resnet.variable_shapes(model, shape), with_head=False)
        variables = {**variables, "params": variables["params"] | loaded["params"], "batch_stats": loaded["batch_stats"]}

    @jax.jit
    def features(images: jax.Array) -> dict[str, jax.Array]:
        return model.apply(variables, images, train=False, method="features")

    pooled, labels = {}, {}
    for split in ("train", "val"):
        images, labels[split] = load_images(split)
        stages = features(images)
        *_, last = stages.values()
        pooled[split] = np.asarray(jnp.mean(last, (1, 2)))
        print(f"{split}: " + ", ".join(f"{name} {list(value.shape)}" for name, value in stages.items()))
    classifier = LogisticRegression(max_iter=2000).fit(pooled["train"], labels["train"])
    right = int((classifier.predict(pooled["val"]) == labels["val"]).sum())
    print(f"linear classifier on {list(stages)[-1]}: {right} of {len(labels['val'])} held-out images right")


def run(argv: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    with one_line_errors():
        main(argv)


if __name__ == "__main__":
    app.run(run)
