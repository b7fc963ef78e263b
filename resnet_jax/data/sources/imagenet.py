"""What ILSVRC 2012 calls its classes: WordNet ids (wnids) in alphabetical order, names for people, the devkit's numbers."""

import csv
import functools
import io
import pathlib
import re
import tarfile
from collections.abc import Sequence

from resnet_jax.data.sources import storage
from resnet_jax.errors import UserError

DEVKIT = "ILSVRC2012_devkit_t12"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
SYNSET_MAPPING = "LOC_synset_mapping.txt"
WNID = re.compile(r"n\d{8}")


@functools.cache
def known_names() -> dict[str, str]:
    """wnid to names (WordNet's synonyms) of the 1000 classes, in the order of their indices."""
    text = pathlib.Path(__file__).with_name("imagenet_classes.tsv").read_text()
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {wnid: names for wnid, names in rows}


def class_names(classes: Sequence[str], root: str | None = None) -> tuple[str, ...]:
    """Names for people of classes that are wnids; other classes are their own names.

    Args:
      classes: wnids or anything else.
      root: where Kaggle's LOC_synset_mapping.txt or the devkit may be; they go before the built-in table.
    """
    names = dict(known_names())
    if root is not None and any(WNID.fullmatch(name) for name in classes):
        names |= _names_in(root)
    return tuple(names.get(name, name) for name in classes)


def _names_in(root: str) -> dict[str, str]:
    mapping = storage.join(root, SYNSET_MAPPING)
    if storage.is_file(mapping):
        rows = (line.split(" ", 1) for line in storage.read(mapping).decode("utf-8", "replace").splitlines())
        return {row[0]: row[1].strip() for row in rows if len(row) == 2}
    meta = _devkit_file(root, "meta.mat")
    return {wnid: words for wnid, words in read_meta(*meta).values()} if meta else {}


def _devkit_file(root: str, name: str) -> tuple[bytes, str] | None:
    """A file of the devkit's `data`, unpacked or still in its archive, and what to call it; None without a devkit."""
    for folder in (root, storage.join(root, DEVKIT, "data"), storage.join(root, "data")):
        path = storage.join(folder, name)
        if storage.is_file(path):
            return storage.read(path), path
    archive = storage.join(root, f"{DEVKIT}.tar.gz")
    if not storage.is_file(archive):
        return None
    try:
        with tarfile.open(fileobj=io.BytesIO(storage.read(archive))) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(f"data/{name}"):
                    return tar.extractfile(member).read(), f"{archive}:{member.name}"
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive}: not a readable devkit ({error}); download it again") from error
    raise UserError(f"{archive}: no data/{name} in it; download the ILSVRC 2012 devkit of tasks 1 and 2 again")


def read_meta(data: bytes, name: str) -> dict[int, tuple[str, str]]:
    """The devkit's meta.mat: ILSVRC2012_ID to (wnid, words), for the classes without children (1 to 1000).

    Raises:
      UserError: not such a file.
    """
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        return {
            int(row["ILSVRC2012_ID"]): (str(row["WNID"]), str(row["words"]))
            for row in synsets.reshape(-1)
            if int(row["num_children"]) == 0
        }
    except Exception as error:  # a broken .mat file can raise almost anything
        raise UserError(f"{name}: not the devkit's meta.mat ({type(error).__name__}: {error})") from error


def validation_wnids(root: str) -> tuple[list[str], str]:
    """The wnid of each validation image, by its number (from 1) minus one, and the file that says so.

    Raises:
      UserError: no file says it, or it is malformed.
    """
    labels = storage.join(root, SYNSET_LABELS)
    if storage.is_file(labels):
        wnids = storage.read(labels).decode("ascii", "replace").split()
        bad = next((i for i, wnid in enumerate(wnids) if not WNID.fullmatch(wnid)), None)
        if bad is not None:
            raise UserError(f"{labels}: line {bad + 1} is {wnids[bad]!r}, expected a wnid such as n01440764")
        return wnids, labels
    solution = storage.join(root, "LOC_val_solution.csv")
    if storage.is_file(solution):
        return _kaggle_wnids(solution), solution
    truth = _devkit_file(root, GROUND_TRUTH)
    if truth is None:
        raise UserError(
            f"data.root={root}: no labels of the validation images; put {DEVKIT}.tar.gz, {SYNSET_LABELS} or "
            "LOC_val_solution.csv beside the tars"
        )
    meta = _devkit_file(root, "meta.mat")
    if meta is None:
        raise UserError(f"{truth[1]}: its numbers need the devkit's meta.mat; put {DEVKIT}.tar.gz beside it")
    by_id = read_meta(*meta)
    try:
        return [by_id[int(line)][0] for line in truth[0].split()], truth[1]
    except (KeyError, ValueError) as error:
        raise UserError(f"{truth[1]}: {error} is not an ILSVRC2012_ID of {meta[1]}") from error


def _kaggle_wnids(path: str) -> list[str]:
    rows = sorted(csv.reader(io.StringIO(storage.read(path).decode("ascii", "replace"))))
    pairs = [row for row in rows if len(row) == 2 and row[0].startswith("ILSVRC2012_val_")]
    wnids = [prediction.split()[0] if prediction.split() else "" for _, prediction in pairs]
    if not wnids or not all(WNID.fullmatch(wnid) for wnid in wnids):
        raise UserError(f"{path}: not Kaggle's LOC_val_solution.csv (ImageId,PredictionString)")
    return wnids
