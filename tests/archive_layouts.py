"""Archives as they are downloaded, from tiny phantoms: for each kind the names and contents of its files."""

import functools
import gzip
import io
import json
import tarfile
import zipfile

import nibabel as nib
import numpy as np

from engine.runtime.errors import run
from tools import prepare_dataset

SHAPE = (6, 5, 4)
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "  # begins the ._ file that macOS adds to each file
AMOS_CT = {"Tr": [f"amos_{number:04d}" for number in range(1, 201)], "Va": [f"amos_{n:04d}" for n in range(301, 401)]}
AMOS_MRI = {"Tr": [f"amos_{n:04d}" for n in range(507, 547)], "Va": [f"amos_{n:04d}" for n in range(570, 590)]}
MSD_NAMES = {
    "pancreas": ("Task07_Pancreas", {"0": "CT"}, {"0": "background", "1": "pancreas", "2": "cancer"}),
    "hippocampus": ("Task04_Hippocampus", {"0": "MRI"}, {"0": "background", "1": "Anterior", "2": "Posterior"}),
    "prostate": ("Task05_Prostate", {"0": "T2", "1": "ADC"}, {"0": "background", "1": "PZ", "2": "TZ"}),
}


@functools.cache
def encode(shape=SHAPE, values=(0, 1), kind=np.uint8, spacing=1.0):
    """Encode a volume, which has the values one after the other, as a .nii.gz file."""
    voxels = np.resize(np.array(values, kind), shape)
    return gzip.compress(nib.Nifti1Image(voxels, np.diag([spacing] * 3 + [1.0])).to_bytes(), mtime=0)


def image(**changes):
    return encode(**{"values": (-100, 0, 40, 200), "kind": np.int16, **changes})


def label(*values, **changes):
    return encode(values=values or (0, 1, 2), **changes)


def with_macos(files):
    """Add the second tree of files that macOS packs into a zip."""
    return files | {f"__MACOSX/{name.replace('/', '/._', 1)}": APPLE_DOUBLE for name in files}


def with_apple_doubles(files):
    """Add the file that macOS packs beside each file into a tar."""
    doubles = {f"{name.rpartition('/')[0]}/._{name.rpartition('/')[2]}": APPLE_DOUBLE for name in files}
    return files | doubles


def amos(ids_by_part, tests=(), **labels):
    """AMOS22: ``labels`` has the contents of label maps that differ from the others, by id."""
    files, parts = {}, {"Tr": "training", "Va": "validation"}
    listed = {
        key: [{"image": f"./images{part}/{case}.nii.gz"} for case in ids_by_part[part]] for part, key in parts.items()
    }
    for part, cases in ids_by_part.items():
        for case in cases:
            files[f"amos22/images{part}/{case}.nii.gz"] = image()
            files[f"amos22/labels{part}/{case}.nii.gz"] = labels.get(case, label())
    files |= {f"amos22/imagesTs/{case}.nii.gz": image() for case in tests}
    described = {**listed, "test": [], "modality": {"0": "CT"}, "labels": {"0": "background"}, "licence": "CC"}
    return files | {"amos22/dataset.json": json.dumps(described).encode(), "amos22/readme.md": b"AMOS"}


def kits(labels, cases, imaging="case", folder="data"):
    """KiTS: ``labels`` are the names of label maps; ``imaging`` is "case", "flat" or "none"."""
    files = {f"{folder}/case_{case:05d}/{name}": label() for case in cases for name in labels}
    name = {"case": f"{folder}/case_{{:05d}}/imaging.nii.gz", "flat": "images/case_{:05d}.nii.gz"}.get(imaging)
    return files | ({name.format(case): image() for case in cases} if name else {})


KITS21 = ("aggregated_MAJ_seg.nii.gz", "aggregated_AND_seg.nii.gz", "aggregated_OR_seg.nii.gz")


def msd(task, numbers, tests=(), digits=3, channels=1, side=None):
    """MSD: with the misspelt "relase" of Tasks 04 and 07."""
    top, modality, names = MSD_NAMES[task]
    ids = [f"{task}_{number:0{digits}d}" for number in numbers]
    grid = SHAPE if side is None else (side,) * 3
    shape = (*grid, channels) if channels > 1 else grid
    files = {}
    for case in ids:
        files[f"{top}/imagesTr/{case}.nii.gz"] = image(shape=shape)
        files[f"{top}/labelsTr/{case}.nii.gz"] = label(shape=grid)
    test_ids = [f"{task}_{number:0{digits}d}" for number in tests]
    files |= {f"{top}/imagesTs/{case}.nii.gz": image(shape=shape) for case in test_ids}
    described = {
        **{"name": top.partition("_")[2], "relase": "1.0", "licence": "CC-BY-SA 4.0", "tensorImageSize": "3D"},
        **{"modality": modality, "labels": names, "numTraining": len(ids), "numTest": len(test_ids)},
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ids],
        "test": [f"./imagesTs/{case}.nii.gz" for case in test_ids],
    }
    return files | {f"{top}/dataset.json": json.dumps(described).encode()}


def nnunet(ids, channels=("CT",), labels=None, **fields):
    files = {}
    for case in ids:
        for place in range(len(channels)):
            files[f"Dataset001_Boxes/imagesTr/{case}_{place:04d}.nii.gz"] = image()
        files[f"Dataset001_Boxes/labelsTr/{case}.nii.gz"] = label()
    described = {
        "channel_names": {str(place): name for place, name in enumerate(channels)},
        "labels": labels or {"background": 0, "left": 1, "right": 2},
        **{"numTraining": len(ids), "file_ending": ".nii.gz"},
        **fields,
    }
    return files | {"Dataset001_Boxes/dataset.json": json.dumps(described).encode()}


def btcv():
    """BTCV: the 30 labelled cases, and one without label."""
    numbers = [*range(1, 11), *range(21, 41)]
    files = {f"Training/img/img{number:04d}.nii.gz": image() for number in numbers}
    files |= {f"Training/label/label{number:04d}.nii.gz": label() for number in numbers}
    return files | {"Testing/img/img0061.nii.gz": image()}


def flare22(numbers=range(1, 51)):
    files = {f"images/FLARE22_Tr_{number:04d}_0000.nii.gz": image() for number in numbers}
    return files | {f"labels/FLARE22_Tr_{number:04d}.nii.gz": label() for number in numbers}


def totalsegmentator(subjects, masks, modality="ct"):
    """TotalSegmentator: ``masks`` has the values of each mask by class; two subjects train, one validates.

    Its table begins with a byte order mark.
    """
    files = {}
    for subject in subjects:
        files[f"{subject}/{modality}.nii.gz"] = image()
        for name, values in masks.items():
            files[f"{subject}/segmentations/{name}.nii.gz"] = label(*values)
    parts = ["train", "train", "val", *["test"] * len(subjects)]
    rows = [f"{subject};60;{part}" for subject, part in zip(subjects, parts, strict=False)]
    return files | {"meta.csv": "\n".join(["image_id;age;split", *rows]).encode("utf-8-sig")}


def brats(ids, endings=("_t1", "_t1ce", "_t2", "_flair"), seg="_seg"):
    files = {f"{case}/{case}{ending}.nii.gz": image() for case in ids for ending in endings}
    return files | {f"{case}/{case}{seg}.nii.gz": label(0, 1, 2, 4) for case in ids}


OF_2023 = {"endings": ("-t1n", "-t1c", "-t2w", "-t2f"), "seg": "-seg"}


def write_folder(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def snapshot(folder):
    """Return the content of every file, to see that none changes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def prepare(capsys, source, output, *flags):
    """Run the tool in this process; returns (exit status, stdout, stderr)."""
    capsys.readouterr()
    words = ["--source", source, "--output", output, *flags]
    try:
        status = run(prepare_dataset.main, prepare_dataset.parse_args([str(word) for word in words]))
    except SystemExit as stop:  # argparse
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
