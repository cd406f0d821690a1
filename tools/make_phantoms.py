"""Write a small dataset of procedural abdominal CT phantoms, for demos and tests.

    python -m tools.make_phantoms --root data/phantoms --train 6 --val 2
    python -m tools.make_phantoms --archive data/Task99_Phantoms.tar --train 6 --val 2

Layout: <root>/imagesTr, labelsTr, imagesVal, labelsVal with phantom_001.nii.gz and so on. An image (int16, Hounsfield
units) and its label map (uint8, AMOS numbering) have the same file name. Spacing, origin, orientation and axis order
differ between cases, and some AMOS classes never occur, as in real collections. --archive writes the training cases
as the Medical Segmentation Decathlon packs its tasks, with the validation cases as test images without labels.
"""

import argparse
import gzip
import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from engine.data.datasets import AMOS_ORGANS
from engine.runtime.errors import InputError, OneLineParser, run
from engine.runtime.files import write_whole

Triple = tuple[float, float, float]

FIELD_OF_VIEW_MM = (340.0, 270.0, 180.0)
ORIENTATIONS = ("RAS", "LPS", "LAS", "PIR", "AIL")
CORE = 0.75  # share of the radii within which a shape has the attenuation of its core
SCALE_LIMITS = (0.25, 10.0)
TASK = "Task99_Phantoms"  # top folder of the archive
APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        "  # begins the ._ files of macOS
AIR_HU, GAS_HU, FAT_HU, SKIN_HU, MUSCLE_HU, RIB_HU = -1000.0, -900.0, -100.0, 20.0, 50.0, 400.0


class Shape(NamedTuple):
    """Ellipsoid in atlas coordinates: mm, LAS+ axes (x left, y anterior, z superior), origin mid-torso.

    Args:
        name: name of the anatomy.
        label: AMOS class, 0 for anatomy that is visible but not labelled.
        centre: mean position in mm.
        radii: mean half axes in mm; a half axis far beyond the field of view gives a tube.
        hu: mean attenuation in Hounsfield units.
        loose: variability of position, size, tilt and outline, from 0 (rigid) to 1 (a mobile organ).
        gas: largest share of the front-to-back extent filled with gas, which rises to the front of a supine patient.
        core_hu: mean attenuation of the inner part, where it differs: contents of a hollow organ, medulla of a kidney.
    """

    name: str
    label: int
    centre: Triple
    radii: Triple
    hu: float
    loose: float = 1.0
    gas: float = 0.0
    core_hu: float | None = None


# Earlier shapes have precedence: a core is listed before its shell, the gall bladder before the liver that it dents.
SKELETON = (
    *(Shape("disc", 0, (0, -58, z), (21, 16, 5), 90, loose=0) for z in range(-114, 115, 38)),
    Shape("marrow", 0, (0, -58, 0), (19, 14, 900), 200, loose=0),
    Shape("vertebral cortex", 0, (0, -58, 0), (23, 18, 900), 550, loose=0),
    Shape("spinal canal", 0, (0, -82, 0), (8, 7, 900), 30, loose=0),
    Shape("vertebral arch", 0, (0, -82, 0), (13, 11, 900), 500, loose=0),
    *(Shape("spinous process", 0, (0, -92, z), (4, 11, 12), 450, loose=0) for z in range(-95, 96, 38)),
)
# Attenuation as in the late arterial phase, some 40 s after the injection: arteries and renal cortex are the brightest,
# spleen and pancreas have taken up more contrast medium than the liver, veins are still pale.
ORGANS = (
    Shape("aorta", 8, (8, -29, 0), (10, 10, 900), 250, loose=0.3),
    Shape("postcava", 9, (-18, -28, 0), (13, 10, 900), 105, loose=0.3),
    Shape("right psoas", 0, (-31, -56, -60), (15, 16, 90), 60, loose=0.3),
    Shape("left psoas", 0, (31, -56, -60), (15, 16, 90), 60, loose=0.3),
    Shape("right kidney", 2, (-64, -36, -32), (25, 27, 50), 200, core_hu=140),
    Shape("left kidney", 3, (62, -36, -18), (25, 27, 50), 200, core_hu=140),
    Shape("gall bladder", 4, (-42, 46, -10), (18, 18, 30), 8),
    Shape("spleen", 1, (94, -28, 38), (26, 40, 44), 145),
    Shape("liver, right lobe", 6, (-70, 10, 36), (56, 64, 60), 85),
    Shape("liver, left lobe", 6, (-8, 46, 50), (56, 28, 32), 85),
    Shape("pancreas, head", 10, (-20, 8, -18), (19, 15, 24), 120, loose=0.7),
    Shape("pancreas, body", 10, (24, -4, -2), (46, 14, 15), 120, loose=0.7),
    Shape("stomach", 7, (50, 30, 32), (36, 36, 42), 80, gas=0.4, core_hu=30),
)
LUNGS = tuple(Shape("lung base", 0, (x, -15, 100), (52, 62, 45), -800) for x in (-72, 72))


def draw(
    shape: Shape, axes: list[np.ndarray], hu: np.ndarray, labels: np.ndarray, room: np.ndarray, rng: np.random.Generator
) -> None:
    """Draw one randomly varied shape into the free voxels, and mark these as occupied.

    Args:
        shape: shape to draw.
        axes: atlas coordinates in mm of the voxels along each of the three axes.
        hu, labels: volumes (X, Y, Z) to draw into.
        room: mask of the voxels where nothing has been drawn yet, (X, Y, Z).
        rng: random generator of the variation.
    """
    centre = np.add(shape.centre, shape.loose * rng.uniform(-10, 10, 3))
    radii = np.multiply(shape.radii, 1 + shape.loose * rng.uniform(-0.15, 0.15, 3))
    tilt = Rotation.from_euler("xyz", shape.loose * rng.uniform(-15, 15, 3), degrees=True).as_matrix() / radii[:, None]
    waves = rng.normal(0, 2 * np.pi / 120, (3, 3))  # radians per mm: bulges of about 10 cm, the scale of an organ
    phases = rng.uniform(0, 2 * np.pi, 3)
    gas_depth = radii[1] * 2 * shape.gas * rng.uniform(0, 1)

    reach = 1.3 * np.linalg.norm(tilt * radii[:, None] ** 2, axis=0)  # the outline may bulge by a fifth
    box = tuple(slice(*np.searchsorted(a, (c - r, c + r))) for a, c, r in zip(axes, centre, reach, strict=True))
    offset = np.stack(np.meshgrid(*(a[b] - c for a, b, c in zip(axes, box, centre, strict=True)), indexing="ij"))
    bulge = np.sin(np.tensordot(waves, offset, 1) + phases.reshape(3, 1, 1, 1)).sum(axis=0)
    depth = np.linalg.norm(np.tensordot(tilt, offset, 1), axis=0) * (1 + 0.06 * shape.loose * bulge)

    inside = (depth < 1) & room[box]
    gas = inside & (depth < 0.9) & (offset[1] > radii[1] - gas_depth)
    hu[box][inside] = shape.hu
    if shape.core_hu is not None:
        hu[box][inside & (depth < CORE)] = shape.core_hu
    hu[box][gas] = GAS_HU
    labels[box][inside] = shape.label
    room[box][inside] = False


def bowel_loops(rng: np.random.Generator) -> list[Shape]:
    """Return unlabelled bowel loops below the stomach, which they resemble in Hounsfield units and gas."""

    def between(low: float | Triple, high: float | Triple) -> Triple:
        x, y, z = rng.uniform(low, high, 3)
        return x, y, z

    return [
        Shape("bowel", 0, between((-95, 0, -95), (95, 65, -25)), between(14, 27), 90, gas=0.5, core_hu=35)
        for _ in range(14)
    ]


def draw_torso(axes: list[np.ndarray], hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw skin, fat, muscle wall and ribs into `hu`; return the mask (X, Y, Z) of the fat-filled abdominal cavity."""
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)

    def tube(half_width: float, half_depth: float, front: float = 0.0) -> np.ndarray:
        # An exponent above 2 gives the flattened oval of a supine patient; the result broadcasts along z.
        return np.abs(x / half_width) ** 2.4 + np.abs((y - front) / half_depth) ** 2.4 < 1

    fat = rng.uniform(8, 22)  # thickness in mm
    cavity = tube(128, 82, front=9)  # shifted forward, because the back muscles are the thickest
    ribs = tube(137, 93, front=2) & ~tube(130, 86, front=6) & (np.abs(x) > 25) & ((z + 0.6 * y) % 30 < 11) & (z > -45)
    layers = (
        (tube(142 + fat, 100 + fat), SKIN_HU),
        (tube(140 + fat, 98 + fat), FAT_HU),
        (tube(140, 98), MUSCLE_HU),
        (cavity, FAT_HU),
        (ribs, RIB_HU),
    )
    for mask, value in layers:
        hu[np.broadcast_to(mask, hu.shape)] = value
    return np.broadcast_to(cavity, hu.shape) & (hu == FAT_HU)


def scan(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Simulate the scan of `hu` (X, Y, Z): blurred edges and noise that is correlated in plane, int16."""
    noise = gaussian_filter(rng.standard_normal(hu.shape), (0.7, 0.7, 0.3))
    noise *= rng.uniform(12, 20) / noise.std()
    return np.clip(np.rint(gaussian_filter(hu, (0.5, 0.5, 0.3)) + noise), -1024, 3071).astype(np.int16)


def to_nifti(voxels: np.ndarray, affine: np.ndarray, axcodes: str) -> nib.Nifti1Image:
    """Return a NIfTI image of `voxels` (X, Y, Z) with its axes permuted and flipped to `axcodes`, such as "LPS"."""
    image = nib.Nifti1Image(voxels, affine)
    image = image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(axcodes)))
    image.set_sform(image.affine, code="scanner")
    image.set_qform(image.affine, code="scanner")
    image.header.set_xyzt_units("mm")
    return image


def make_phantom(seed: int, case: int, scale: float = 1.0) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Make one phantom, which depends only on the arguments; `scale` changes the grid but not the patient.

    Args:
        seed: seed of the dataset, 0 or more.
        case: number of the case, 1 or more, which also determines the orientation.
        scale: factor on the voxel spacing; 1 gives 2.2 to 3.0 mm in plane and slices of 3 to 6 mm.

    Returns:
        The image (int16, Hounsfield units) and the label map (uint8, AMOS classes), on the same grid.
    """
    rng = np.random.default_rng((seed, case))
    spacing = np.array([*[rng.uniform(2.2, 3.0)] * 2, rng.uniform(3.0, 6.0)]) * scale
    size = np.rint(np.multiply(FIELD_OF_VIEW_MM, rng.uniform(0.96, 1.04, 3)) / spacing).astype(int)
    build = rng.uniform((0.93, 0.93, 0.92), (1.03, 1.06, 1.08))  # size of this patient relative to the atlas
    shift = rng.uniform(-1, 1, 3) * (5, 5, 12)  # mm from the centre of the field of view
    centre = rng.uniform((-15, -60, -400), (15, 60, 400))  # scanner coordinates of the middle of the volume, mm
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [a[0] for a in axes]
    affine[0] *= -1  # the atlas counts x towards the patient's left, the scanner towards the right
    affine[:3, 3] += centre
    axes = [(a - m) / b for a, m, b in zip(axes, shift, build, strict=True)]

    hu = np.full(size, AIR_HU)
    labels = np.zeros(size, np.uint8)
    cavity = draw_torso(axes, hu, rng)
    room = np.ones(size, bool)
    for shape in SKELETON:
        draw(shape, axes, hu, labels, room, rng)
    room &= cavity
    for shape in (*ORGANS, *LUNGS, *bowel_loops(rng)):
        draw(shape, axes, hu, labels, room, rng)
    # One draw per class, so that the two lobes of the liver match; gas does not take up contrast medium.
    hu += np.where((labels > 0) & (hu > GAS_HU), rng.normal(0, 6, 16)[labels], 0)

    axcodes = ORIENTATIONS[(case - 1) % len(ORIENTATIONS)]
    return to_nifti(scan(hu, rng), affine, axcodes), to_nifti(labels, affine, axcodes)


def check_values(train: int, val: int, seed: int, scale: float) -> None:
    """Raise an InputError if the size, seed or scale of a dataset is out of range."""
    for flag, count, least in (("--train", train, 1), ("--val", val, 1), ("--seed", seed, 0)):
        if count < least:
            raise InputError(f"{flag}: found {count}, expected an integer of at least {least}")
    low, high = SCALE_LIMITS
    if not low <= scale <= high:
        raise InputError(f"--scale: found {scale}, expected a number from {low} to {high}")


def make_dataset(root: Path | str, train: int, val: int, seed: int, scale: float) -> None:
    """Write `train` + `val` phantoms under `root`; validation cases continue the numbering of the training cases.

    Raises:
        InputError: a value is out of range, or a folder contains files that this dataset would not overwrite.
        OSError: `root` cannot be written.
    """
    check_values(train, val, seed, scale)
    splits = {"Tr": range(1, train + 1), "Val": range(train + 1, train + val + 1)}
    names = {split: [f"phantom_{case:03d}.nii.gz" for case in cases] for split, cases in splits.items()}
    folders = {split: (Path(root) / f"images{split}", Path(root) / f"labels{split}") for split in splits}
    for split, pair in folders.items():
        for folder in pair:
            folder.mkdir(parents=True, exist_ok=True)
            # A stray volume would be read as another case of the dataset.
            strays = sorted({path.name for path in folder.iterdir()} - set(names[split]))
            if strays:
                raise InputError(f"--root: found {strays[0]} in {folder}, expected an empty or absent folder")
    for split, cases in splits.items():
        for case, name in zip(cases, names[split], strict=True):
            for folder, volume in zip(folders[split], make_phantom(seed, case, scale), strict=True):
                nib.save(volume, folder / name)


def make_archive(path: Path | str, train: int, test: int, seed: int, scale: float) -> None:
    """Write phantoms as a .tar in the layout of the Medical Segmentation Decathlon, macOS's ._ files included.

    Raises:
        InputError: a value is out of range, or the file exists.
        OSError: `path` cannot be written.
    """
    check_values(train, test, seed, scale)
    if os.path.exists(path):
        raise InputError(f"--archive: found {path}, expected a file that does not exist yet")
    ids = [f"phantom_{case:03d}" for case in range(1, train + test + 1)]
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ids[:train]]
    description = {
        "name": "Phantoms",
        "description": "procedural phantoms of abdominal CT",
        "licence": "MIT",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(AMOS_ORGANS)},
        "numTraining": train,
        "numTest": test,
        "training": pairs,
        "test": [f"./imagesTs/{name}.nii.gz" for name in ids[train:]],
    }

    def write(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            add_to_archive(archive, "dataset.json", json.dumps(description, indent=2).encode())
            for case, name in enumerate(ids, start=1):
                image, labels = make_phantom(seed, case, scale)
                add_to_archive(archive, f"images{'Tr' if case <= train else 'Ts'}/{name}.nii.gz", pack(image))
                if case <= train:
                    add_to_archive(archive, f"labelsTr/{name}.nii.gz", pack(labels))

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), write)


def pack(image: nib.Nifti1Image) -> bytes:
    """Encode a volume as a .nii.gz file, the same bytes each time."""
    return gzip.compress(image.to_bytes(), mtime=0)


def add_to_archive(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to the archive, and before it the ._ file that macOS adds."""
    folder, _, file = f"{TASK}/{name}".rpartition("/")
    for path, packed in ((f"{folder}/._{file}", APPLE_DOUBLE), (f"{folder}/{file}", content)):
        info = tarfile.TarInfo(path)
        info.size = len(packed)
        archive.addfile(info, io.BytesIO(packed))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = OneLineParser("make_phantoms", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--root", type=Path, metavar="DIR", help="folder to write the dataset into")
    where.add_argument("--archive", type=Path, metavar="FILE.tar", help="file to write instead, in the layout of MSD")
    parser.add_argument("--train", type=int, default=6, metavar="N", help="number of training cases")
    parser.add_argument("--val", type=int, default=2, metavar="N", help="number of validation cases")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the dataset")
    parser.add_argument("--scale", type=float, default=1.0, metavar="FACTOR", help="factor on the voxel spacing")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write the dataset; a folder that cannot be written is reported as one line."""
    flag, path, rest = ("--archive", args.archive, "test") if args.archive else ("--root", args.root, "validation")
    make = make_archive if args.archive else make_dataset
    try:
        make(path, args.train, args.val, args.seed, args.scale)
    except OSError as error:
        raise InputError(f"{flag}: found {path} ({error.strerror}), expected a folder that can be written") from error
    print(f"Wrote {args.train} training and {args.val} {rest} cases to {path}")


if __name__ == "__main__":
    sys.exit(run(main, parse_args()))
