"""Tiny data sets in the layouts of the large ones, all with the same images."""

import io
import json
import tarfile
import threading

import numpy as np
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n01443537", "n02012849")


def picture(number, height=20, width=24):
    """uint8 [height, width, 3], smooth, different for each number."""
    ramp = np.linspace(0, 100, width, dtype=np.uint8)
    planes = (np.tile(ramp, (height, 1)), np.full((height, width), 7 * number % 256), np.full((height, width), 90))
    return np.stack(planes, -1).astype(np.uint8)


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def training():
    """(wnid, file name, bytes), in order."""
    return [(w, f"{w}_{i}.JPEG", jpeg(picture(4 * c + i))) for c, w in enumerate(WNIDS) for i in range(4)]


def validation():
    """(wnid, file name, bytes), by number: neither classes nor files are in class order."""
    order = (2, 0, 1, 1, 0, 2, 0)
    return [(WNIDS[c], f"ILSVRC2012_val_{i + 1:08d}.JPEG", jpeg(picture(30 + i))) for i, c in enumerate(order)]


def write_folder(root):
    for split, images in (("train", training()), ("val", validation())):
        for wnid, name, data in images:
            path = root / split / wnid / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def tar_of(files, gz=False):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if gz else "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def meta_mat():
    """The devkit's meta.mat: ids in another order than the wnids, and an inner node of the tree at the end."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    rows = [
        (1, WNIDS[1], "goldfish, from the devkit", "a fish", 0, np.zeros((1, 0)), 0, 4),
        (2, WNIDS[2], "crane, from the devkit", "a bird", 0, np.zeros((1, 0)), 0, 4),
        (3, WNIDS[0], "tench, from the devkit", "a fish", 0, np.zeros((1, 0)), 0, 4),
        (4, "n00001740", "entity", "all", 3, np.array([[1, 2, 3]]), 2, 0),
    ]
    synsets = np.empty((len(rows), 1), [(field, object) for field in fields])
    for i, row in enumerate(rows):
        synsets[i, 0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def ground_truth():
    number = {WNIDS[1]: 1, WNIDS[2]: 2, WNIDS[0]: 3}
    return "".join(f"{number[wnid]}\n" for wnid, _, _ in validation()).encode()


def write_tars(root, devkit=True):
    root.mkdir(exist_ok=True)
    classes = [
        (f"{wnid}.tar", tar_of([(name, data) for w, name, data in reversed(training()) if w == wnid]))
        for wnid in reversed(WNIDS)  # no tar is in order
    ]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(classes))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of([(name, data) for _, name, data in reversed(validation())]))
    if devkit:
        top = "ILSVRC2012_devkit_t12"
        files = [
            (f"{top}/data/ILSVRC2012_validation_ground_truth.txt", ground_truth()),
            (f"{top}/data/meta.mat", meta_mat()),
            (f"{top}/readme.txt", b"..."),
        ]
        (root / f"{top}.tar.gz").write_bytes(tar_of(files, gz=True))
    return root


def write_parquet(root, row_group_size=3):
    """Two training files and one of validation, as the `datasets` library pushes them to the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": list(WNIDS), "_type": "ClassLabel"}}
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image_type), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    train = training()
    (root / "data").mkdir(parents=True)
    for name, images in (
        ("train-00000-of-00002", train[:7]),
        ("train-00001-of-00002", train[7:]),
        ("validation-00000-of-00001", validation()),
    ):
        rows = [{"image": {"bytes": data, "path": name}, "label": WNIDS.index(w)} for w, name, data in images]
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, root / "data" / f"{name}.parquet", row_group_size=row_group_size)
    return root


def wrong_in_threads(source, want, reads):
    """The indices that four threads, reading all over the source at once, did not find as in `want`."""
    wrong = []

    def read(start):
        for i in range(reads):
            index = (start + 5 * i) % len(want)
            record = source[index]
            if (record.label, record.image) != want[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def contents(source):
    """(label, bytes) of all records."""
    return [(source[i].label, source[i].image) for i in range(len(source))]
