"""The images of a folder that are to be segmented."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data.cases import find_cases, image_files, matching_label_folder
from engine.data.folders import PREDICTION_ENDING
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.warning_lines import print_warnings
from engine.runtime.wording import count_of

OF_LABELS = ("no label", "no image")  # kinds of warnings that do not matter here


def find_images(dataset_dir: str, output_dir: str, channels: int, endings: Sequence[str]) -> list[dict[str, Any]]:
    """Find the images of a folder that have no label map in the output folder yet, sorted by id.

    Args:
        dataset_dir: folder of .nii.gz or .nii files, or one file.
        output_dir: folder of label maps; finished ones are kept.
        channels: number of channels. Several are the files <id>_0000, <id>_0001, ..., or the fourth dimension of one.
        endings: what follows the id in the name of each channel's file, in place of _0000, _0001, ...
    Returns: dictionaries with the "id", the "image" (one path, or one per channel) and the "grid", its first path.
    Raises:
        InputError: one line per problem of the folder; the two folders are the same.
    """
    folder, output = Path(dataset_dir), Path(output_dir)
    if output.resolve() in (folder.resolve(), folder.resolve().parent if folder.is_file() else None):
        raise InputError(f"output_dir: found the folder of the images, {output}, expected another one")
    # A folder of labels beside it, imagesTs and labelsTs, tells how channels are named, as for test_seg.py.
    labels = matching_label_folder(folder)
    if labels is not None and labels.resolve() == output.resolve():
        labels = None
    found = find_cases(folder, labels, channels, endings, every_label=False)
    print_warnings({kind: lines for kind, lines in found.warnings.items() if kind not in OF_LABELS})
    raise_problems(found.problems)
    missing = [case for case in found.cases if not label_path(output, case["id"]).exists()]
    if finished := len(found.cases) - len(missing):
        print(f"{finished} of {count_of(len(found.cases), 'label map')} exist in {output} already and are kept")
    return [{"id": case["id"], "image": case["image"], "grid": image_files(case)[0]} for case in missing]


def label_path(folder: Path, case: str) -> Path:
    """Return the path of a case's label map."""
    return folder / f"{case}{PREDICTION_ENDING}"
