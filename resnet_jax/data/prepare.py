"""Packs any data set into sharded ArrayRecord files that are quick to read at random.

    python -m resnet_jax.data.prepare SOURCE DEST [--short-side 512 --quality 90]
    python -m resnet_jax.data.prepare --verify DEST

SOURCE is `folder:PATH`, `tar:PATH`, `parquet:PATH`, `cifar10:PATH`, `records:PATH`, `tfds:NAME@PATH`, or a path alone,
whose kind is then found out. Train on the result with `--config.data.source=records --config.data.root=DEST`.

Without --short-side, --format and --quality the images keep their bytes. Every image is decoded once: broken ones are
named, on the console and in DEST/broken.txt, and the command ends with an error unless --skip-broken leaves them out.
The files depend on the source and the options alone, never on --workers. After a kill, the same command goes on with
the shards that are missing. At the end every shard is read again (counts, SHA-256).

The mean and the standard deviation of the training pixels are stored too (for data.mean=pixel or channel): of every
image's centre square after its shorter side is resized to --mean-size.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_jax import lock
from resnet_jax.config import DataConfig
from resnet_jax.data import packing, sources
from resnet_jax.data.decode import decode
from resnet_jax.data.sources import detect, imagenet, records, storage
from resnet_jax.errors import UserError, one_line_errors

SHARD_RECORDS = 10_000  # about a gigabyte of ImageNet: what a kill can cost each worker
DEFAULT_MEAN_SIZE = 224
SAMPLE = 16  # images that are looked at before the start


class _Cancelled(Exception):
    """The main process wants this worker to stop."""


# What a worker process holds: set once by `_start_worker`, since a source is too large to send with every task.
_worker: dict[str, Any] = {}


def _start_worker(opened: dict[str, Any], options: packing.Options, done: Any, stop: Any) -> None:
    _worker.update(sources=opened, options=options, done=done, stop=stop)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _progress(images: int) -> None:
    if _worker["stop"].is_set():
        raise _Cancelled
    with _worker["done"].get_lock():
        _worker["done"].value += images


def _pack(shard: packing.Shard) -> dict[str, Any]:
    return packing.pack_shard(shard, _worker["sources"][shard.split], _worker["options"], _progress)


def open_splits(data: DataConfig, split: str) -> dict[str, sources.Source]:
    """The sources of 'train', 'val' or 'both', with the same classes.

    Raises:
      UserError: one is missing, or their classes differ.
    """
    names = ("train", "val") if split == "both" else (split,)
    opened = {}
    for name in names:
        try:
            opened[name] = sources.open_source(data, name, 0)
        except UserError as error:
            other = "train" if name == "val" else "val"
            raise UserError(f"{error} (without this split: --split {other})" if split == "both" else str(error)) from error
    first = opened[names[0]]
    for name, source in opened.items():
        if source.classes != first.classes:
            raise UserError(f"{data.root}: {name} has other classes than {names[0]}; pack them apart, with --split")
        if not len(source):
            raise UserError(f"{data.root}: no images in {name}")
    return opened


def _sample(source: sources.Source) -> tuple[list[str | None], set[tuple[int, ...]], bool]:
    """Digests of a few images of a source (None: broken), the sizes of those images, and whether any is encoded."""
    digests, shapes, encoded = [], set(), False
    for position in range(min(SAMPLE, len(source))):
        record = source[position * len(source) // min(SAMPLE, len(source))]
        is_bytes = isinstance(record.image, bytes)
        encoded |= is_bytes
        try:
            shapes.add((decode(record.image, record.name) if is_bytes else record.image).shape)
        except UserError:  # reported when all images are read; it may be replaced before this run goes on
            digests.append(None)
            continue
        data = record.image if is_bytes else record.image.tobytes()
        digests.append(hashlib.sha256(f"{record.label} {record.name} ".encode() + data).hexdigest()[:16])
    return digests, shapes, encoded


def make_plan(args: argparse.Namespace, opened: dict[str, sources.Source]) -> dict[str, Any]:
    """All that the files depend on; a run goes on only under the plan that it was started with."""
    digests, shapes, encoded = {}, set(), False
    for split, source in opened.items():
        digests[split], sizes, is_encoded = _sample(source)
        shapes |= sizes
        encoded |= is_encoded
    kind = args.format or ("jpeg" if args.short_side or args.quality else "keep" if encoded else "raw")
    if kind == "raw" and args.quality:
        raise UserError("--quality is of JPEG: leave it out with --format raw")
    grey = next((source for source in opened.values() if source.channels != 3), None)
    if kind in ("jpeg", "png") and grey is not None:
        raise UserError(f"--format {kind}: images of {grey.channels} channel(s) would be read as RGB; use --format raw")
    shape = next(iter(shapes)) if len(shapes) == 1 else (0, 1)
    native = shape[0] if shape[0] == shape[1] and shape[0] <= 512 else DEFAULT_MEAN_SIZE
    return {
        "short_side": args.short_side,
        "format": kind,
        "quality": (args.quality or 90) if kind == "jpeg" else None,
        "mean_size": args.mean_size or (min(native, args.short_side) if args.short_side else native),
        "splits": {
            split: {
                "images": len(source),
                "shards": min(args.shards or -(-len(source) // SHARD_RECORDS), len(source)),
                "sample": digests[split],
            }
            for split, source in opened.items()
        },
        "classes": hashlib.sha256("\n".join(next(iter(opened.values())).classes).encode()).hexdigest(),
    }


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        same = all(None in pair or pair[0] == pair[1] for pair in zip(old, new, strict=True))
        return [] if same else [f"{prefix}: other images or another order"]
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{prefix}: {old} there, {new} here"]
    return [d for key in sorted(old | new) for d in _differences(old.get(key), new.get(key), f"{prefix} {key}".strip())]


def _check_plan(dest: pathlib.Path, path: pathlib.Path, stored: Any, plan: dict[str, Any]) -> None:
    if differing := _differences(stored, plan):
        raise UserError(
            f"{dest}: was packed from another source or with other options ({'; '.join(differing)}); "
            f"use the same ones, another folder, or remove {path.parent if path.name == 'plan.json' else dest}"
        )


@contextlib.contextmanager
def _own(dest: pathlib.Path, notes: pathlib.Path) -> Iterator[None]:
    """Makes the destination and holds it."""
    try:
        if dest.is_dir() and not notes.is_dir() and any(dest.iterdir()):
            raise UserError(f"{dest}: holds other files; give a new or an empty folder")
        notes.mkdir(parents=True, exist_ok=True)
        (notes / "lock").touch()
    except OSError as error:
        raise UserError(f"{dest}: cannot write there ({error.strerror}); choose another folder") from error
    with lock.held(notes / "lock", f"{dest}: another process is packing there; wait for its end"):
        yield


def _shards(dest: pathlib.Path, notes: pathlib.Path, plan: dict[str, Any]) -> list[packing.Shard]:
    """Contiguous, nearly equal ranges."""
    return [
        packing.Shard(dest, notes, split, i, n, i * entry["images"] // n, (i + 1) * entry["images"] // n)
        for split, entry in plan["splits"].items()
        for n in (entry["shards"],)
        for i in range(n)
    ]


def _bar(total: int, initial: int) -> tqdm:
    interactive = sys.stderr.isatty()
    return tqdm(total=total, initial=initial, unit=" images", smoothing=0.1, mininterval=0.2 if interactive else 30)


def pack_shards(todo: Sequence[packing.Shard], opened: dict, options: packing.Options, workers: int, bar: tqdm) -> None:
    """Makes shards in worker processes (0: in this one); each is noted in the folder of its notes when it is finished.

    Raises:
      UserError: from a worker, or a worker died.
    """
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads can hang
    done, stop = context.Value("q", 0), context.Event()
    initial = bar.n

    def finished(note: dict[str, Any]) -> None:
        for line in note["broken"]:
            bar.write(f"broken: {line}", file=sys.stderr)

    if not workers:
        _start_worker(opened, options, done, stop)
        for shard in todo:
            finished(_pack(shard))
            bar.update(shard.stop - shard.start)
        return
    workers = min(workers, len(todo))
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (opened, options, done, stop)) as pool:
        try:
            waiting = {pool.submit(_pack, shard) for shard in todo}
            while waiting:
                ready, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
                bar.update(initial + done.value - bar.n)
                for future in ready:
                    finished(future.result())
        except concurrent.futures.BrokenExecutor as error:
            raise UserError("a worker died (out of memory?); run the same command again, with fewer --workers") from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _verify_all(dest: pathlib.Path, entries: Sequence[dict[str, Any]]) -> None:
    with concurrent.futures.ThreadPoolExecutor(min(len(entries), os.cpu_count() or 1, 8)) as pool:
        for _ in pool.map(lambda entry: packing.verify(dest, entry), entries):
            pass


def verify(dest: str) -> str:
    """Reads a packed data set again; returns a line that says what it holds.

    Raises:
      UserError: the first damaged or missing file.
    """
    splits = records.read_description(dest)["splits"]
    _verify_all(pathlib.Path(dest), [entry for split in splits.values() for entry in split["shards"]])
    counts = ", ".join(f"{split['records']} images in {name}" for name, split in splits.items())
    return f"{dest}: {counts}; all shards have the right size, count and SHA-256"


def _describe(dest: pathlib.Path, notes: Sequence[tuple[packing.Shard, dict]], opened: dict, plan: dict, args: Any) -> dict:
    """The contents of dataset.json; writes the mean image."""
    first = next(iter(opened.values()))
    named = getattr(first, "class_names", None)
    splits = {}
    for split in plan["splits"]:
        entries = [note for shard, note in notes if shard.split == split]
        shards = [{key: note[key] for key in ("file", "records", "bytes", "sha256")} for note in entries]
        broken = sum(len(note["broken"]) for note in entries)
        splits[split] = {"records": sum(note["records"] for note in entries), "broken": broken, "shards": shards}
    statistics, size = None, plan["mean_size"]
    sums = packing.PixelSums(size, first.channels)
    for shard, _ in notes:
        if shard.split == "train":
            sums.merge(*shard.sums())
    if sums.count:
        pixel_mean, mean, std = sums.statistics()
        buffer, file = io.BytesIO(), f"train-mean-{size}.npy"
        np.save(buffer, pixel_mean)
        packing.write_atomically(dest / file, buffer.getvalue())
        statistics = {"size": size, "channel_mean": mean, "channel_std": std, "pixel_mean": file, "images": sums.count}
    return {
        "format": records.FORMAT,
        "version": records.VERSION,
        "source": args.source,
        "channels": first.channels,
        "splits": splits,
        "statistics": statistics,
        "plan": plan,
        "classes": list(first.classes),
        "class_names": list(named or imagenet.class_names(first.classes)),
    }


def prepare(args: argparse.Namespace) -> str:
    """Packs a data set (see the module); returns a line that says what was made.

    Raises:
      UserError: bad arguments, a source that cannot be read, or broken images without `--skip-broken`.
    """
    if storage.is_remote(args.dest):
        raise UserError(f"{args.dest}: packing writes to local disks only; pack there and copy the folder to the bucket")
    dest = pathlib.Path(args.dest)
    opened = open_splits(detect.parse(args.source), args.split)
    plan = make_plan(args, opened)
    notes = dest / ".prepare"
    if (dest / records.DESCRIPTION).is_file():
        _check_plan(dest, dest / records.DESCRIPTION, records.read_description(args.dest).get("plan"), plan)
        shutil.rmtree(notes, ignore_errors=True)
        return f"{verify(args.dest)} (packed before)"
    with _own(dest, notes):
        plan_path = notes / "plan.json"
        if plan_path.is_file():
            _check_plan(dest, plan_path, json.loads(plan_path.read_text()), plan)
        packing.write_atomically(plan_path, json.dumps(plan).encode())
        description = _pack_all(args, dest, notes, opened, plan)
        packing.write_atomically(dest / records.DESCRIPTION, (json.dumps(description, indent=1) + "\n").encode())
        shutil.rmtree(notes, ignore_errors=True)
    counts = ", ".join(f"{split['records']} images in {name}" for name, split in description["splits"].items())
    return f"{dest}: {counts}, checked; train with --config.data.source=records --config.data.root={dest}"


def _pack_all(args: Any, dest: pathlib.Path, notes: pathlib.Path, opened: dict, plan: dict) -> dict[str, Any]:
    """Makes what is missing, checks all of it; returns the contents of dataset.json."""
    options = packing.Options(plan["short_side"], plan["format"], plan["quality"] or 0, plan["mean_size"])
    shards = _shards(dest, notes, plan)
    # A shard with broken images is made again, in case they were replaced.
    todo = [s for s in shards if (note := s.note()) is None or (note["broken"] and not args.skip_broken)]
    images = sum(entry["images"] for entry in plan["splits"].values())
    missing = sum(shard.stop - shard.start for shard in todo)
    if missing < images:
        print(f"{dest}: going on, {len(shards) - len(todo)} of {len(shards)} shards are there", file=sys.stderr)
    with _bar(images, images - missing) as bar:
        if todo:
            pack_shards(todo, opened, options, args.workers, bar)
    finished = [(shard, shard.note()) for shard in shards]
    if lost := [shard.file for shard, note in finished if note is None]:
        raise UserError(f"{dest}: {lost[0]} is gone; run the same command again")
    broken = [line for _, note in finished for line in note["broken"]]
    (dest / "broken.txt").unlink(missing_ok=True)
    if broken:
        (dest / "broken.txt").write_text("".join(f"{line}\n" for line in broken))
        if not args.skip_broken:
            raise UserError(
                f"{len(broken)} of {images} images are broken (listed in {dest / 'broken.txt'}): replace them and run this "
                "again, or add --skip-broken to leave them out"
            )
        print(f"{len(broken)} broken images left out (listed in {dest / 'broken.txt'})", file=sys.stderr)
    _verify_all(dest, [note for _, note in finished])
    return _describe(dest, finished, opened, plan, args)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""

    def number(low: int, high: int) -> Any:
        def convert(text: str) -> int:
            if not text.isdigit() or not low <= int(text) <= high:
                raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from {low} to {high}")
            return int(text)

        return convert

    parser = argparse.ArgumentParser("python -m resnet_jax.data.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("source", nargs="?", help=f"KIND:PATH, tfds:NAME@PATH or PATH; kinds: {', '.join(detect.KINDS)}")
    parser.add_argument("dest", nargs="?", help="a new folder, or one of an interrupted run")
    parser.add_argument("--short-side", type=number(1, 65535), help="make larger images smaller, to this shorter side")
    parser.add_argument("--quality", type=number(1, 100), help="of JPEG (90)")
    parser.add_argument("--format", choices=("jpeg", "png", "raw"), help="encode images anew; raw: uncompressed pixels")
    parser.add_argument("--shards", type=number(1, 99999), help="files for each split (one for every 10,000 images)")
    parser.add_argument("--split", choices=("train", "val", "both"), default="both")
    parser.add_argument("--workers", type=number(0, 4096), default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--mean-size", type=number(1, 4096), help="size of the mean image (that of the images, or 224)")
    parser.add_argument("--skip-broken", action="store_true", help="leave broken images out instead of ending with an error")
    parser.add_argument("--verify", metavar="DEST", help="only check a packed data set")
    args = parser.parse_args(argv)
    if args.verify is None and (args.source is None or args.dest is None):
        parser.error("give SOURCE and DEST, or --verify DEST")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = parse_args(argv)
    with one_line_errors():
        print(verify(args.verify) if args.verify is not None else prepare(args))


if __name__ == "__main__":
    main()
