"""Writes tests/data/tfds_fixture.zip: a tiny set prepared by TensorFlow Datasets, as `tfds build` does it.

TFDS needs TensorFlow to write images (never to read them), which this project does not install:

    python -m venv tf && tf/bin/pip install tensorflow-cpu tensorflow-datasets array_record importlib_resources
    tf/bin/python tests/data/make_tfds_fixture.py
"""

import pathlib
import tempfile
import zipfile

import numpy as np
import tensorflow_datasets as tfds

DESTINATION = pathlib.Path(__file__).parent / "tfds_fixture.zip"
CLASSES = ("n01440764", "n01443537", "n02012849")


def picture(number: int) -> np.ndarray:
    """uint8 [20, 24, 3], a different colour for each number."""
    ramp = np.linspace(0, 100, 24, dtype=np.uint8)
    return np.stack([np.tile(ramp, (20, 1)), np.full((20, 24), 20 * number, np.uint8), np.full((20, 24), 90, np.uint8)], -1)


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Features as imagenet2012 has them."""

    VERSION = tfds.core.Version("5.1.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, manager):
        del manager
        return {"train": self._generate_examples(range(9)), "validation": self._generate_examples(range(9, 13))}

    def _generate_examples(self, numbers):
        for number in numbers:
            yield number, {"image": picture(number), "label": number % 3, "file_name": f"{number}.JPEG"}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        TinyImages(data_dir=folder, file_format="array_record").download_and_prepare()
        # An archive, since ArrayRecord pads every file to 128 kB.
        with zipfile.ZipFile(DESTINATION, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(pathlib.Path(folder, "tiny_images").rglob("*.*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))
