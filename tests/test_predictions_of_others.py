"""A run replaces only what the program has written itself from the same image; anything else is kept, or refused."""

import gzip
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import assert_one_line, prediction_arguments, write_nifti
from prediction_folders import NAMES, assert_same_files, copy_predictions, path_of, put, rewrite

from engine.data.nifti import read_voxels


def correct(path):
    """Change a voxel, and save as ITK-SNAP does: int16, with the affine rounded to float32."""
    image = nib.load(path)
    voxels = put(2)(np.asarray(image.dataobj).astype(np.int16))
    nib.save(nib.Nifti1Image(voxels, image.affine.astype(np.float32)), path)


def move(path):
    image = nib.load(path)
    write_nifti(path, np.asarray(image.dataobj), image.affine + np.eye(4)[:, [3, 0, 1, 2]])


CORRECTIONS = {
    "as ITK-SNAP": correct,
    "a voxel": lambda path: rewrite(path, put(2)),
    "another value": lambda path: rewrite(path, put(9)),
    "another shape": lambda path: rewrite(path, lambda voxels: voxels[:-1]),
    "another affine": move,
    "another type": lambda path: rewrite(path, lambda voxels: voxels.astype(np.float32)),
}


@pytest.mark.parametrize("change", CORRECTIONS.values(), ids=CORRECTIONS)
def test_a_corrected_prediction_is_kept_and_said(boxes, trained, predicted, tmp_path, predict, count_forwards, change):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    change(path_of(output, "box_1"))
    corrected = path_of(output, "box_1").read_bytes()
    for _ in range(2):
        status, out, _ = predict(*prediction_arguments(boxes, output, trained))
        assert status == 0
        assert (
            "kept without a score, because others have written or changed them (--overwrite replaces them): box_1"
            in out
        )
        assert "3 predictions in" in out
        assert path_of(output, "box_1").read_bytes() == corrected
    assert not count_forwards
    assert predict(*prediction_arguments(boxes, output, trained, "--overwrite"))[0] == 0
    assert_same_files(output, predicted, [path_of(output, name).name for name in NAMES])


def test_scores_are_those_of_the_network(boxes, trained, predicted, tmp_path, predict):
    """A corrected label map has no score, whether or not others are predicted at the same time."""
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    correct(path_of(output, "box_1"))
    path_of(output, "box_2").unlink()
    assert predict(*prediction_arguments(boxes, output, trained))[0] == 0
    rows = [line.split(",") for line in (output / "dice.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["case", "box_0", "box_2", "mean"]


def test_a_hand_drawn_label_map_of_a_new_case_is_kept(boxes, trained, predicted, tmp_path, predict, count_forwards):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    for kind in ("images", "labels"):
        shutil.copy(boxes / f"{kind}Val" / "box_8.nii.gz", boxes / f"{kind}Tr" / "new.nii.gz")
    shutil.copy(boxes / "labelsVal" / "box_8.nii.gz", path_of(output, "new"))  # uint8, on the grid of its image
    drawn = path_of(output, "new").read_bytes()
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 0
    assert "(--overwrite replaces them): new" in out
    assert path_of(output, "new").read_bytes() == drawn
    assert not count_forwards


def test_a_correction_outlives_a_changed_image(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    correct(path_of(output, "box_1"))
    corrected = path_of(output, "box_1").read_bytes()
    rewrite(boxes / "imagesTr" / "box_1.nii.gz", np.negative)
    assert predict(*prediction_arguments(boxes, output, trained))[0] == 0
    assert path_of(output, "box_1").read_bytes() == corrected


def forget_digests(output):
    settings = json.loads((output / "settings.json").read_text())
    del settings["written"]
    for source in settings["sources"].values():
        del source["paths"]
    (output / "settings.json").write_text(json.dumps(settings))


def test_folders_of_earlier_versions_have_no_digests(boxes, trained, predicted, tmp_path, predict, count_forwards):
    """What the program might have written counts as its own; anything else does not."""
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    forget_digests(output)
    correct(path_of(output, "box_1"))
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 0
    assert "2 of 3 predictions are finished already" in out
    assert "(--overwrite replaces them): box_1" in out
    written = json.loads((output / "settings.json").read_text())["written"]
    assert sorted(written) == ["box_0_seg.nii.gz", "box_2_seg.nii.gz"]
    assert not count_forwards


def test_predictions_of_a_killed_run_are_its_own(boxes, trained, predicted, tmp_path, predict, count_forwards):
    """Their digests are only in the journal, whose last line may be half written."""
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    settings = json.loads((output / "settings.json").read_text())
    lines = [json.dumps({"file": name, "digest": digest}) for name, (digest,) in settings["written"].items()]
    (output / "settings.json").write_text(json.dumps(settings | {"written": {}}))
    (output / ".written_0.jsonl").write_text("\n".join(["", *lines[:2], lines[2][:-20]]))
    (output / ".written_1.jsonl").write_text("\n" + lines[2])
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 0
    assert "3 of 3 predictions are finished already" in out
    assert not count_forwards
    assert_same_files(output, predicted, [path.name for path in predicted.iterdir()])
    assert not list(output.glob(".written*"))


def separate(boxes, tmp_path):
    """Put each image into a folder of its own, under the same name."""
    for number, name in enumerate(NAMES):
        folder = tmp_path / f"case_{number}"
        folder.mkdir()
        shutil.copy(boxes / "imagesTr" / f"{name}.nii.gz", folder / "imaging.nii.gz")


def test_a_prediction_never_replaces_that_of_another_image(boxes, trained, tmp_path, predict):
    """The loop ``for c in case_*: test_seg.py --images $c/imaging.nii.gz --output out``."""
    separate(boxes, tmp_path)
    output = tmp_path / "out"

    def predict_one(number, *more):
        images = ("--images", tmp_path / f"case_{number}" / "imaging.nii.gz")
        return predict(*prediction_arguments(boxes, output, trained, *images, *more))

    assert predict_one(0)[0] == 0
    first = path_of(output, "imaging").read_bytes()
    for number in (1, 2):
        assert_one_line(
            predict_one(number),
            f"--output: {path_of(output, 'imaging')} was predicted from {tmp_path}/case_0/imaging.nii.gz, "
            f"not from {tmp_path}/case_{number}/imaging.nii.gz, expected another folder, or --overwrite, which",
        )
        assert path_of(output, "imaging").read_bytes() == first
    assert predict_one(0)[0] == 0
    assert predict_one(2, "--overwrite")[0] == 0
    assert path_of(output, "imaging").read_bytes() != first


def test_an_image_in_another_place_is_the_same_image(boxes, trained, predicted, tmp_path, predict, count_forwards):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    (boxes / "imagesTr").rename(boxes / "images")
    (boxes / "labelsTr").rename(boxes / "labels")
    status, out, _ = predict(*prediction_arguments(boxes, output, trained, "--images", boxes / "images"))
    assert status == 0
    assert "3 of 3 predictions are finished already" in out
    assert not count_forwards


def test_predictions_beside_their_images_are_not_segmented(boxes, trained, predicted, predict):
    """--output is the folder of --images, twice."""
    folder = boxes / "imagesTr"
    for _ in range(2):
        status, out, _ = predict(*prediction_arguments(boxes, folder, trained))
        assert status == 0
        assert "3 predictions in" in out
    assert "left out box_0_seg.nii.gz, box_1_seg.nii.gz, box_2_seg.nii.gz, predictions of test_seg.py" in out
    assert sorted(path.name for path in folder.glob("*_seg*")) == [f"{name}_seg.nii.gz" for name in NAMES]
    for name in NAMES:
        assert path_of(folder, name).read_bytes() == path_of(predicted, name).read_bytes()


def test_masks_of_others_beside_the_images_are_never_replaced(boxes, trained, predict):
    folder = boxes / "imagesTr"
    mask = folder / "box_1_seg.nii.gz"
    shutil.copy(boxes / "labelsTr" / "box_1.nii.gz", mask)
    before = mask.read_bytes()
    shutil.rmtree(boxes / "labelsTr")
    result = predict(*prediction_arguments(boxes, folder, trained))
    assert_one_line(result, f"--output: {mask} would be replaced, expected another folder")
    assert mask.read_bytes() == before


@pytest.mark.parametrize("name", ["settings.json", "dice.csv", "dice.json"])
def test_files_of_other_programs_are_not_replaced(boxes, trained, tmp_path, predict, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    result = predict(*prediction_arguments(boxes, tmp_path / "out", trained))
    assert_one_line(result, f"--output: found {tmp_path}/out/{name}, which test_seg.py has not written")
    assert (tmp_path / "out" / name).read_text() == "{}"


def test_pictures_of_others_are_not_removed(boxes, trained, tmp_path, predict):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "box_0.png").write_bytes(b"mine")
    assert predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--preview"))[0] == 0
    assert (tmp_path / "out" / "box_0.png").read_bytes() == b"mine"


def test_ids_that_the_disk_does_not_tell_apart_are_refused(boxes, trained, tmp_path, predict, monkeypatch):
    for kind in ("images", "labels"):
        shutil.copy(boxes / f"{kind}Tr" / "box_1.nii.gz", boxes / f"{kind}Tr" / "BOX_1.nii.gz")
    assert predict(*prediction_arguments(boxes, tmp_path / "out", trained))[0] == 0
    assert path_of(tmp_path / "out", "BOX_1").exists()
    monkeypatch.setattr("engine.prediction.outputs.tells_case", lambda folder: False)
    result = predict(*prediction_arguments(boxes, tmp_path / "new", trained))
    assert_one_line(
        result, f"--output: {tmp_path}/new has one file for BOX_1 and box_1, expected a disk that tells case"
    )
    assert not list((tmp_path / "new").iterdir())


def test_overwrite_loses_nothing_of_a_folder_that_is_unknown(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    (output / "settings.json").write_text('{"mine": 1}')
    (output / "box_0.png").write_bytes(b"mine")
    scores = (output / "dice.csv").read_bytes()
    for first in (True, False):
        status, out, _ = predict(*prediction_arguments(boxes, output, trained, "--overwrite"))
        assert status == 0
        line = f"warning: {output}/settings.json was not written by test_seg.py, and is kept as settings.json.old"
        assert (f"{line} (and 2 more of this kind)" in out) == first
        assert (f"{output}/box_0.png was not" in out) == first
    assert json.loads((output / "settings.json.old").read_text()) == {"mine": 1}
    assert (output / "box_0.png.old").read_bytes() == b"mine"
    assert (output / "dice.csv.old").read_bytes() == scores
    assert not (output / "settings.json.old1").exists()


def test_a_correction_that_cannot_be_read_is_kept_and_said(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    path = path_of(output, "box_1")
    for aside in (path.with_name(f"{path.name}.damaged"), path.with_name(f"{path.name}.damaged1")):
        path.write_bytes(aside.name.encode())
        status, out, _ = predict(*prediction_arguments(boxes, output, trained))
        assert status == 0
        assert f"warning: {path} cannot be read, and is kept as {aside.name}" in out
        assert aside.read_bytes() == aside.name.encode()
        assert path.read_bytes() == path_of(predicted, "box_1").read_bytes()


def test_a_correction_saved_without_compression_is_kept(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    path = path_of(output, "box_1")
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(content)
    status, out, _ = predict(*prediction_arguments(boxes, output, trained))
    assert status == 0
    assert "(--overwrite replaces them): box_1" in out
    assert path.read_bytes() == content
    out = predict(*prediction_arguments(boxes, output, trained, "--overwrite"))[1]
    assert "label maps that others have written or changed are replaced: box_1" in out
    assert path.read_bytes() == path_of(predicted, "box_1").read_bytes()


def test_a_kept_correction_of_a_changed_image_is_warned_of(boxes, trained, predicted, tmp_path, predict):
    output = copy_predictions(predicted, tmp_path / "out", boxes)
    correct(path_of(output, "box_1"))
    assert "has changed" not in predict(*prediction_arguments(boxes, output, trained))[1]
    image = boxes / "imagesTr" / "box_1.nii.gz"
    write_nifti(image, read_voxels(str(image)) + 1)
    line = f"warning: {path_of(output, 'box_1')} is kept, but the image has changed since it was predicted"
    for _ in range(2):
        assert line in predict(*prediction_arguments(boxes, output, trained))[1]


def test_names_may_hold_what_matplotlib_reads_as_mathematics(boxes, trained, tmp_path, predict):
    for kind in ("images", "labels"):
        (boxes / f"{kind}Tr" / "box_1.nii.gz").rename(boxes / f"{kind}Tr" / "pat$\\frac{$x.nii.gz")
    assert predict(*prediction_arguments(boxes, tmp_path / "out", trained, "--preview"))[0] == 0
    assert (tmp_path / "out" / "pat$\\frac{$x.png").stat().st_size > 1000
    assert read_voxels(str(tmp_path / "out" / "pat$\\frac{$x_seg.nii.gz")).any()
