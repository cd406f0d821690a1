"""Images of any name are predicted under names of their own, and no file of the user is touched."""

import shutil

from fuzzing import copies, end_well, examples
from hypothesis import given
from hypothesis import strategies as st

from engine.data.cases import find_cases

ODD = [
    "a_seg",
    "a",
    "A",
    "a_0000",
    "a_0001",
    "dice",
    "settings",
    ".hidden",
    "a.nii",
    "a b",
    "$x$",
    "%s",
    "-r",
    240 * "x",
]
characters = st.characters(exclude_characters="/\0", exclude_categories=("Cs",))
names = st.sampled_from(ODD) | st.text(characters, min_size=1, max_size=12).filter(lambda name: name not in (".", ".."))
endings = st.sampled_from([".nii.gz", ".nii.gz", ".NII.GZ", ".Nii.gz"])
files = st.lists(st.tuples(names, endings).map("".join), min_size=1, max_size=3, unique=True)


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir() if path.is_file()}


@examples(6)
@given(images=files, labels=files, beside=st.booleans())
def test_images_of_any_name(box_template, trained, images, labels, beside):
    with copies() as folder:
        for kind, chosen in (("images", images), ("labels", [*labels, *images])):
            (folder / kind).mkdir()
            for name in dict.fromkeys(chosen):
                shutil.copy(box_template / f"{kind}Val" / "box_8.nii.gz", folder / kind / name)
        output = folder / ("images" if beside else "out")
        before = contents(folder / "images", folder / "labels")
        arguments = ("--images", folder / "images", "--labels", folder / "labels", "--output", output)
        weights = ("--trained_weights", trained / "best_metric_model.pth", "--gpu", "cpu", "--num_workers", "0")
        cases = find_cases(folder / "images", None).cases
        result = end_well("test_seg.py", *arguments, *weights, statuses=(0, 1, 2))
        after = contents(folder / "images", folder / "labels")
        assert before.items() <= after.items()
        if result.status != 2:
            failed = [case["id"] for case in cases if not (output / f"{case['id']}_seg.nii.gz").exists()]
            assert all(len(name.encode()) > 237 for name in failed), failed
