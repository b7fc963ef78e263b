"""One shard of a packed data set: images read, checked, perhaps made smaller, written; their pixels summed."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from resnet_jax.data.decode import decode
from resnet_jax.data.sources import records
from resnet_jax.data.sources.base import Record, Source
from resnet_jax.errors import UserError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class Options:
    """What is stored.

    Attributes:
      short_side: images with a longer shorter side are resized to it (bicubic, antialiased); None: all as they are.
      format: keep (the original bytes), jpeg, png or raw (pixels). An image that is not resized and has the format
        already keeps its bytes.
      quality: of JPEG, with chroma subsampled 4:2:0.
      mean_size: height and width at which pixel statistics are taken.
    """

    short_side: int | None
    format: str
    quality: int
    mean_size: int


def resized(pixels: np.ndarray, short_side: int, resample: int) -> np.ndarray:
    """uint8 `[height, width, channels]` with the shorter side `short_side`, the other one rounded to nearest."""
    height, width, channels = pixels.shape
    scale = short_side / min(height, width)
    size = (short_side, max(short_side, round(width * scale))) if height <= width else None
    size = size or (max(short_side, round(height * scale)), short_side)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return np.asarray(image.resize(size[::-1], resample)).reshape(*size, channels)


def centre(pixels: np.ndarray, size: int) -> np.ndarray:
    """The view in which statistics are taken: shorter side `size` (bilinear, antialiased), then the centre square."""
    if pixels.shape[:2] != (size, size):
        pixels = resized(pixels, size, Image.BILINEAR)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


class PixelSums:
    """Exact integer sums over images, so that order and grouping change nothing.

    Attributes:
      count: images.
      first: int64 `[size, size, channels]`, sum of the pixels.
      second: int64 `[channels]`, sum of their squares.
    """

    def __init__(self, size: int, channels: int):
        self.count = 0
        self.first = np.zeros((size, size, channels), np.int64)
        self.second = np.zeros(channels, np.int64)

    def add(self, view: np.ndarray) -> None:
        """Adds one image, uint8 `[size, size, channels]`."""
        self.count += 1
        self.first += view
        self.second += np.square(view, dtype=np.uint16).sum((0, 1), dtype=np.int64)

    def merge(self, count: int, first: np.ndarray, second: np.ndarray) -> None:
        """Adds the sums of other images."""
        self.count += count
        self.first += first
        self.second += second

    def statistics(self) -> tuple[np.ndarray, list[float], list[float]]:
        """The mean per pixel, float64 `[size, size, channels]`, and the mean and standard deviation per channel."""
        number = self.count * self.first.shape[0] * self.first.shape[1]
        sums = [(int(a), int(b)) for a, b in zip(self.first.sum((0, 1)), self.second, strict=True)]
        mean = [first / number for first, _ in sums]
        std = [max(number * second - first * first, 0) ** 0.5 / number for first, second in sums]  # exact integers
        return self.first / self.count, mean, std


def stored_image(record: Record, pixels: np.ndarray, options: Options) -> tuple[bytes | np.ndarray, np.ndarray]:
    """What is written of an image, and its pixels (before they are encoded)."""
    fits = options.short_side is None or min(pixels.shape[:2]) <= options.short_side
    if not fits:
        pixels = resized(pixels, options.short_side, Image.BICUBIC)
    if options.format == "raw":
        return pixels, pixels
    encoded = record.image if isinstance(record.image, bytes) else b""
    same = {"keep": bool(encoded), "jpeg": simplejpeg.is_jpeg(encoded), "png": encoded.startswith(PNG_MAGIC)}
    if fits and same[options.format]:
        return encoded, pixels
    if options.format == "jpeg":
        pixels = np.ascontiguousarray(pixels)
        return simplejpeg.encode_jpeg(pixels, options.quality, colorspace="RGB", colorsubsampling="420"), pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), pixels


def sha256(path: pathlib.Path) -> str:
    """Of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: pathlib.Path, data: bytes) -> None:
    """A file that is there in full or not at all, also after a power cut."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Records `start` to `stop` of a split of the source, written to `dest`; notes on finished shards are in `notes`."""

    dest: pathlib.Path
    notes: pathlib.Path
    split: str
    number: int
    shards: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Its name in `dest`."""
        return records.shard_name(self.split, self.number, self.shards)

    def note(self) -> dict[str, Any] | None:
        """What was noted when it was finished: file, records, bytes, sha256, broken; None if it must be made."""
        try:
            note = json.loads((self.notes / f"{self.file}.json").read_text())
            records.check_size(str(self.dest / self.file), note["bytes"])
        except (OSError, ValueError, KeyError, UserError):
            return None
        return note

    def sums(self) -> tuple[int, np.ndarray, np.ndarray]:
        """The sums over its pixels, for `PixelSums.merge`."""
        with np.load(self.notes / f"{self.file}.npz", allow_pickle=False) as stored:
            return int(stored["count"]), stored["first"], stored["second"]


def pack_shard(
    shard: Shard, source: Source, options: Options, progress: Callable[[int], None] = lambda images: None
) -> dict[str, Any]:
    """Writes one shard; it appears under its name when it is whole.

    Args:
      shard: which.
      source: of its split.
      options: what is stored.
      progress: called with the number of images done since the last call; may raise to stop.

    Returns:
      The shard's note (`Shard.note`).

    Raises:
      UserError: the source cannot be read, or the destination not be written. Broken images are noted instead.
    """
    from array_record.python import array_record_module

    temporary, final = shard.notes / f"{shard.file}.tmp", shard.dest / shard.file
    sums, broken = PixelSums(options.mean_size, source.channels), []
    with _writing(temporary):
        # Each record in a chunk of its own, for random access; images hardly compress any further.
        writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        with contextlib.closing(writer):
            for index in range(shard.start, shard.stop):
                record = source[index]
                try:
                    pixels = decode(record.image, record.name) if isinstance(record.image, bytes) else record.image
                except UserError as error:
                    broken.append(str(error))
                else:
                    image, pixels = stored_image(record, pixels, options)
                    writer.write(records.pack(Record(image, record.label, record.name)))
                    if shard.split == "train":
                        sums.add(centre(pixels, options.mean_size))
                progress(1)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        digest, size = sha256(temporary), temporary.stat().st_size
        arrays = io.BytesIO()
        np.savez(arrays, count=sums.count, first=sums.first, second=sums.second)
        (shard.notes / f"{shard.file}.json").unlink(missing_ok=True)
        temporary.replace(final)
        write_atomically(shard.notes / f"{shard.file}.npz", arrays.getvalue())
        count = shard.stop - shard.start - len(broken)
        note = {"file": shard.file, "records": count, "bytes": size, "sha256": digest, "broken": broken}
        write_atomically(shard.notes / f"{shard.file}.json", json.dumps(note).encode())
    return note


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Any:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room there and run this again") from error
    except RuntimeError as error:  # ArrayRecord's
        message = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be written ({message}); make room there and run this again") from error


def verify(folder: pathlib.Path, entry: dict[str, Any]) -> None:
    """Reads a finished shard again: size, SHA-256, number of records, the first and the last of them.

    Raises:
      UserError: it is not what its entry in `dataset.json` says.
    """
    from array_record.python import array_record_module

    path = folder / entry["file"]
    records.check_size(str(path), entry["bytes"])
    if sha256(path) != entry["sha256"]:
        raise UserError(f"{path}: damaged, its SHA-256 is not the one noted; copy it again, or pack into a new folder")
    try:
        with contextlib.closing(array_record_module.ArrayRecordReader(str(path))) as reader:
            found = reader.num_records()
            for index in {0, found - 1} if found else ():
                records.unpack(reader.read([index])[0])
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it again, or pack into a new folder") from error
    if found != entry["records"]:
        raise UserError(f"{path}: {found} records, expected {entry['records']}; copy it again, or pack into a new folder")
