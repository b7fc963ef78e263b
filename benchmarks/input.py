"""Input speed on one core: decode, random resized crop to 224, flip, normalise; ours beside Pillow and OpenCV, in turns.

    python benchmarks/input.py --data=FOLDER           # with JPEGs anywhere below it, ImageNet's own for choice
    python benchmarks/input.py --data=FOLDER --torch_python=ENV/bin/python --tf_python=ENV2/bin/python   # theirs, too

Every path draws the same boxes and flips and ends in float32; times are of the CPU, of one process with one thread.
`pillow` is torchvision's usual transform, its `ToTensor` and `Normalize` written in NumPy: decode with Pillow, crop, resize
(antialiased), mirror, scale to [0, 1], subtract, divide. `pillow_uint8` and the others leave these three to the device, as
resnet_jax does, and are charged for them here as one multiplication and one addition. `exact` and `fast` are our decoder
with `data.antialias` True and False; `opencv` is OpenCV alone, without antialiasing. `packed512`, `packed320` and `raw256`
read records that `resnet_jax.data.prepare` made with these shorter sides (JPEG of quality 90, and pixels), from the page
cache, and count the reading; `tf_data` is `tf.data` with `decode_and_crop_jpeg`, not antialiased.
"""

import io
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
from absl import app, flags
from PIL import Image

from resnet_jax.data import augment, prepare
from resnet_jax.data.decode import decode
from resnet_jax.data.normalize import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.data.resample import Resample
from resnet_jax.data.sources import RecordsSource

DATA = flags.DEFINE_string("data", None, "A folder with JPEGs, at any depth.", required=True)
COUNT = flags.DEFINE_integer("count", 100, "Images, spread over the folder.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each path.", lower_bound=1)
TORCH_PYTHON = flags.DEFINE_string("torch_python", None, "A Python that has torchvision, to time its own transform.")
TF_PYTHON = flags.DEFINE_string("tf_python", None, "A Python that has TensorFlow, to time tf.data.")
OUTPUT = flags.DEFINE_string("output", None, "Also append the result to this JSON-lines file.")

SIZE = 224
MEAN, STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
FACTOR, OFFSET = np.tile(1 / STD, SIZE), np.tile(-MEAN / STD, SIZE)

TORCHVISION = """
import io, json, pathlib, sys, time, torch
from PIL import Image
from torchvision import transforms as T
torch.set_num_threads(1)
files = [pathlib.Path(name).read_bytes() for name in json.loads(sys.stdin.readline())]
transform = T.Compose([T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(),
                       T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
for line in sys.stdin:
    torch.manual_seed(int(line))
    start = time.process_time()
    for data in files:
        transform(Image.open(io.BytesIO(data)).convert("RGB"))
    print(time.process_time() - start, flush=True)
"""

TF_DATA = """
import json, os, pathlib, sys, time
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
files = [pathlib.Path(name).read_bytes() for name in json.loads(sys.stdin.readline())]

def example(data):
    shape = tf.io.extract_jpeg_shape(data)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape, tf.zeros((1, 0, 4)), min_object_covered=0.0, area_range=(0.08, 1.0), aspect_ratio_range=(3 / 4, 4 / 3),
        max_attempts=10, use_image_if_no_bounding_boxes=True)
    window = tf.stack([begin[0], begin[1], size[0], size[1]])
    image = tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), (224, 224))
    image = tf.image.random_flip_left_right(image)
    return (image - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)

dataset = tf.data.Dataset.from_tensor_slices(files).map(example)
for line in sys.stdin:
    start = time.process_time()
    for _ in dataset:
        pass
    print(time.process_time() - start, flush=True)
"""


def box_of(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """What `augment.InceptionCrop` draws."""
    box = augment.random_box(height, width, (0.08, 1.0), (3 / 4, 4 / 3), rng)
    return box or (0, 0, height, width)


def normalised(image: np.ndarray) -> np.ndarray:
    return image.reshape(SIZE, SIZE * 3) * FACTOR + OFFSET


def pillow_crop(data: bytes, rng: np.random.Generator) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = box_of(image.height, image.width, rng)
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def pillow(data: bytes, rng: np.random.Generator) -> np.ndarray:
    planes = pillow_crop(data, rng).transpose(2, 0, 1).astype(np.float32)
    planes /= 255
    planes -= (MEAN / 255)[:, None, None]
    planes /= (STD / 255)[:, None, None]
    return planes


def pillow_uint8(data: bytes, rng: np.random.Generator) -> np.ndarray:
    return normalised(pillow_crop(data, rng))


def opencv(data: bytes, rng: np.random.Generator) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    top, left, height, width = box_of(*pixels.shape[:2], rng)
    image = cv2.resize(pixels[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    return normalised(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def ours(antialias: bool):
    transform = augment.InceptionCrop(SIZE, resample=Resample(antialias=antialias))

    def run(data: bytes, rng: np.random.Generator) -> np.ndarray:
        return normalised(transform(decode(data, "image"), rng)["image"])

    return run


PATHS = {"pillow": pillow, "pillow_uint8": pillow_uint8, "opencv": opencv, "exact": ours(True), "fast": ours(False)}
PACKED = {
    "packed512": ("--short-side", "512", "--quality", "90"),
    "packed320": ("--short-side", "320", "--quality", "90"),
    "raw256": ("--short-side", "256", "--format", "raw"),
}


def pack(files: list[pathlib.Path], folder: pathlib.Path) -> dict[str, RecordsSource]:
    """The same images as packed records, of each kind in PACKED, in `folder`."""
    for index, file in enumerate(files):
        place = folder / "photos" / "train" / str(index % 2)  # a set has at least two classes
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:05d}.jpg").symlink_to(file.resolve())
    for name, options in PACKED.items():
        source, dest = f"folder:{folder / 'photos'}", str(folder / name)
        prepare.main([source, dest, "--split", "train", "--workers", "0", *options])
    return {name: RecordsSource(str(folder / name), "train") for name in PACKED}


def from_records(source: RecordsSource, antialias: bool):
    transform = augment.InceptionCrop(SIZE, resample=Resample(antialias=antialias))

    def run(index: int, rng: np.random.Generator) -> np.ndarray:
        record = source[index]
        pixels = decode(record.image, record.name) if isinstance(record.image, bytes) else record.image
        return normalised(transform(pixels, rng)["image"])

    return run


class Other:
    """Times another library's transform in a process of its own, when told to."""

    def __init__(self, python: str, script: str, names: list[str]):
        self._process = subprocess.Popen([python, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._send(json.dumps(names))

    def _send(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def __call__(self, seed: int) -> float:
        self._send(str(seed))
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def spread(values: list[float]) -> dict[str, float]:
    return {name: round(f(values), 3) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def measure(files: list[pathlib.Path], packed: dict[str, RecordsSource], others: dict[str, Other]) -> dict[str, list[float]]:
    """CPU seconds of every path in every round; the first turn, which warms up, is left out."""
    photos = [file.read_bytes() for file in files]
    paths = {name: (path, photos) for name, path in PATHS.items()}
    for name, source in packed.items():
        for kind, antialias in (("exact", True), ("fast", False)):
            paths[f"{name}_{kind}"] = (from_records(source, antialias), range(len(files)))
    seconds: dict[str, list[float]] = {name: [] for name in (*paths, *others)}
    for turn in range(ROUNDS.value + 1):
        for name, (path, inputs) in paths.items():
            start = time.process_time()
            for index, data in enumerate(inputs):
                path(data, np.random.Generator(np.random.Philox(key=[turn, index])))
            seconds[name].append(time.process_time() - start)
        for name, other in others.items():
            seconds[name].append(other(turn))
    return {name: values[1:] for name, values in seconds.items()}


def main(_: list[str]) -> None:
    found = sorted(p for p in pathlib.Path(DATA.value).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        sys.exit(f"--data={DATA.value}: no JPEGs in it")
    files = found[:: max(1, len(found) // COUNT.value)][: COUNT.value]
    pythons = {"torchvision": (TORCH_PYTHON.value, TORCHVISION), "tf_data": (TF_PYTHON.value, TF_DATA)}
    names = [str(file) for file in files]
    others = {name: Other(python, script, names) for name, (python, script) in pythons.items() if python}
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(files, pack(files, pathlib.Path(folder)), others)
    for other in others.values():
        other.close()
    result = {
        "images": len(files),
        "mean_kilobytes": round(sum(file.stat().st_size for file in files) / len(files) / 1000, 1),
        "rounds": ROUNDS.value,
        "images_per_second": {n: round(len(files) / statistics.median(v), 1) for n, v in seconds.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"pillow": Image.__version__, "opencv": cv2.__version__, "numpy": np.__version__},
    }
    for base in ("pillow", "pillow_uint8", *others):
        result[f"times_{base}"] = {
            name: spread([theirs / own for theirs, own in zip(seconds[base], values, strict=True)])
            for name, values in seconds.items()
            if name != base
        }
    print(json.dumps(result, indent=1))
    if OUTPUT.value:
        with open(OUTPUT.value, "a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    app.run(main)
