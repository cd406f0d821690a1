"""Archives of each kind, from download to dataset folder: what is written, linked, said and refused."""

import json

import archive_layouts as layouts
import nibabel as nib
import numpy as np
import pytest
from archive_layouts import names
from conftest import assert_one_line

from engine.archives.description import PLACEHOLDERS
from engine.data.case_checks import examine_case
from engine.data.cases import image_files, pair_cases
from engine.data.datasets import DATASETS, DatasetDescription
from engine.data.split_file import SplitFile, read_split_file


@pytest.fixture
def prepare(tmp_path, capsys):
    """Run the tool; returns (exit status, stdout, stderr)."""
    return lambda source, *flags, output=tmp_path / "out": layouts.prepare(capsys, source, output, *flags)


def volumes(ids):
    return [f"{case}.nii.gz" for case in ids]


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def description(root):
    return json.loads((root / "dataset.json").read_text())


def test_amos_ct_from_its_zip(prepare, tmp_path):
    both = {part: [*layouts.AMOS_CT[part], *layouts.AMOS_MRI[part]] for part in ("Tr", "Va")}
    shifted = layouts.label(spacing=1.5)
    files = layouts.with_macos(layouts.amos(both, tests=["amos_0410"], amos_0007=shifted))
    status, out, err = prepare(layouts.write_zip(tmp_path / "amos22.zip", files), "--kind", "amos")
    assert status == 0, err
    root = tmp_path / "out"
    assert names(root / "imagesTr") == names(root / "labelsTr") == volumes(layouts.AMOS_CT["Tr"])
    assert names(root / "imagesVal") == names(root / "labelsVal") == volumes(layouts.AMOS_CT["Va"])
    assert not (root / "imagesTs").exists()
    assert "200 training cases, 100 validation cases" in out
    assert "label maps that got the affine of their image: 1" in out
    np.testing.assert_array_equal(nib.load(root / "labelsTr" / "amos_0007.nii.gz").affine, np.eye(4))
    np.testing.assert_array_equal(
        voxels(root / "labelsTr" / "amos_0007.nii.gz"), voxels(root / "labelsTr" / "amos_0008.nii.gz")
    )
    assert DatasetDescription.read(root / "dataset.json") == DATASETS["amos"]
    folder, dataset = f"--root {root}", f"--dataset {root}/dataset.json"
    split = "--split splits/amos_ct_3duxnet.json --fold 0"
    check = f"    python -m tools.check_data {folder} {dataset} {split}"
    train = f"    python main_train.py {dataset} {folder} {split} --output runs/out"
    assert out.splitlines()[-3:] == ["next:", check, train]


def test_amos_mri_loses_two_values_and_says_how_many(prepare, tmp_path):
    odd = layouts.label(0, 13, 14, 15)
    files = layouts.amos(layouts.AMOS_MRI, amos_0508=odd)
    source = layouts.write_folder(tmp_path / "in", files)
    before = layouts.snapshot(source)
    status, out, err = prepare(source, "--kind", "amos_mri")
    assert status == 0, err
    labels = tmp_path / "out" / "labelsTr"
    assert np.unique(voxels(labels / "amos_0508.nii.gz")).tolist() == [0, 13]
    assert not (labels / "amos_0508.nii.gz").is_symlink()
    assert (labels / "amos_0507.nii.gz").is_symlink()
    assert "label maps with values that became background: 1\nvoxels that became background: 60\n" in out
    assert layouts.snapshot(source) == before
    assert DatasetDescription.read(tmp_path / "out" / "dataset.json") == DATASETS["amos_mri"]


def test_amos_mri_of_one_scanner(prepare, tmp_path):
    source = layouts.write_zip(tmp_path / "amos22.zip", layouts.amos(layouts.AMOS_MRI))
    status = prepare(source, "--kind", "amos_mri", "--scanner", "prisma")
    assert_one_line(status, "--scanner: found no labeled_data_meta_0000_0599.csv in or beside", source)
    rows = [f"{number},M,{'Prisma' if number < 540 else 'SIGNA HDe'}" for number in range(500, 600)]
    table = tmp_path / "labeled_data_meta_0000_0599.csv"
    table.write_text("\n".join(["amos_id,Patient's Sex,Manufacturer's Model Name", *rows]))
    status, out, _ = prepare(source, "--kind", "amos_mri", "--scanner", "prisma")
    assert status == 0
    assert len(names(tmp_path / "out" / "imagesTr")) == 33
    assert "--scanner prisma: 33 of 60 cases" in out
    assert_one_line(
        prepare(source, "--kind", "amos_mri", "--scanner", "Ingenia", output=tmp_path / "other"),
        "--scanner: found Ingenia, expected part of Prisma, SIGNA HDe",
    )


def test_missing_cases_are_named_before_anything_is_written(prepare, tmp_path):
    files = layouts.amos(layouts.AMOS_CT)
    del files["amos22/imagesTr/amos_0003.nii.gz"], files["amos22/labelsTr/amos_0003.nii.gz"]
    del files["amos22/labelsTr/amos_0005.nii.gz"]
    source = layouts.write_folder(tmp_path / "in", files)
    result = prepare(source, "--kind", "amos")
    assert_one_line(result, source, "found 198 complete training cases, expected 200")
    assert_one_line(result, "missing: amos_0003, amos_0005 (no label)")
    assert not (tmp_path / "out").exists()
    status, out, _ = prepare(source, "--kind", "amos", "--allow_missing")
    assert status == 0
    assert "warning: " in out
    assert "198 training cases, 100 validation cases" in out


def test_cases_that_amos_does_not_list_are_left_out(prepare, tmp_path):
    files = layouts.amos(layouts.AMOS_CT)
    files["amos22/imagesTr/amos_0499.nii.gz"], files["amos22/labelsTr/amos_0499.nii.gz"] = (
        layouts.image(),
        layouts.label(),
    )
    status, out, _ = prepare(layouts.write_folder(tmp_path / "in", files), "--kind", "amos")
    assert status == 0
    assert "left out amos_0499, which its dataset.json does not list" in out


@pytest.mark.parametrize("imaging", ["case", "flat"])
def test_kits21(prepare, tmp_path, imaging):
    files = layouts.kits(layouts.KITS21, range(300), imaging, "kits21/data")
    files["kits21/data/case_00007/aggregated_AND_seg.nii.gz"] = layouts.label(0, 3)
    source = layouts.write_folder(tmp_path / "in", files)
    status, out, err = prepare(source, "--cases", "210", "--labels", "AND")
    assert status == 0, err
    root = tmp_path / "out"
    assert "(--kind kits21, found by its files)" in out
    assert names(root / "imagesTr") == names(root / "labelsTr") == [f"case_{case:05d}.nii.gz" for case in range(210)]
    assert np.unique(voxels(root / "labelsTr" / "case_00007.nii.gz")).tolist() == [0, 3]
    assert "--split splits/kits19_210.json" in out
    assert "case_00160: 512 x 796 voxels in plane; kept" in out
    described = DatasetDescription.read(root / "dataset.json")
    assert (described.classes, described.windows) == (DATASETS["kits"].classes, DATASETS["kits"].windows)
    assert dict(described.regions) == {"kidney and masses": (1, 2, 3), "masses": (2, 3)}


def test_kits_without_imaging_says_where_it_is(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.kits(layouts.KITS21, range(3), "none"))
    assert_one_line(prepare(source), "0 images", "imaging is downloaded separately", "neheller/KiTS-Challenge-Imaging")
    assert not (tmp_path / "out").exists()


def test_kits19_has_images_without_labels(prepare, tmp_path):
    files = layouts.kits(["segmentation.nii.gz"], range(210)) | {"data/kits.json": b"[]"}
    files |= {f"data/case_{case:05d}/imaging.nii.gz": layouts.image() for case in range(210, 300)}
    source = layouts.write_folder(tmp_path / "in", files)
    status, out, err = prepare(source, "--with_test")
    assert status == 0, err
    assert "(--kind kits19, found by its files)" in out
    assert "210 training cases, 90 test cases" in out
    assert DatasetDescription.read(tmp_path / "out" / "dataset.json").classes == ("background", "kidney", "tumor")


def test_kits23_has_489_cases(prepare, tmp_path):
    cases = [*range(300), *range(400, 589)]
    files = layouts.kits(["segmentation.nii.gz"], cases, "case", "dataset") | {"dataset/kits23.json": b"[]"}
    status, out, err = prepare(layouts.write_folder(tmp_path / "in", files))
    assert status == 0, err
    assert "(--kind kits23, found by its files)" in out
    assert "489 training cases" in out


def test_kits_that_may_be_of_two_years_asks(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.kits(["segmentation.nii.gz"], range(210)))
    assert_one_line(prepare(source), "--kind: found none, expected kits19 or kits23")


def test_msd_pancreas_from_its_tar(prepare, tmp_path):
    files = layouts.with_apple_doubles(layouts.msd("pancreas", range(1, 282), tests=range(300, 303)))
    source = layouts.write_tar(tmp_path / "Task07_Pancreas.tar", files)
    status, out, err = prepare(source)
    assert status == 0, err
    root = tmp_path / "out"
    assert "(--kind msd, found by its files)" in out
    assert len(names(root / "imagesTr")) == len(names(root / "labelsTr")) == 281
    assert (root / "imagesTr" / "pancreas_009.nii.gz").read_bytes() == files[
        "Task07_Pancreas/imagesTr/pancreas_009.nii.gz"
    ]
    assert not (root / "imagesTs").exists()
    assert names(root) == [".prepared.jsonl", "dataset.json", "imagesTr", "labelsTr"]
    assert DatasetDescription.read(root / "dataset.json") == DATASETS["pancreas"]
    assert "--split splits/msd_pancreas.json" in out


def test_msd_without_published_spacing_asks_for_a_plan(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.msd("hippocampus", range(1, 261), tests=range(400, 402)))
    status, out, _ = prepare(source / "Task04_Hippocampus", "--with_test")
    assert status == 0
    root = tmp_path / "out"
    assert description(root) == {
        "name": "Hippocampus",
        "modality": "MRI",
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "channels": ["MRI"],
    }
    assert f"tools.check_data --root {root} --dataset {root}/dataset.json --write_description {root}/plan.json" in out
    assert f"tools.make_split --root {root} --dataset {root}/plan.json --folds 5" in out
    assert f"main_train.py @{root}/plan.args --root {root} --split {root}/split.json --fold 0" in out
    assert names(root / "imagesTs") == ["hippocampus_400.nii.gz", "hippocampus_401.nii.gz"]


def test_msd_volumes_of_several_channels_stay_4d(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.msd("prostate", range(32), digits=2, channels=2))
    assert prepare(source)[0] == 0
    image = tmp_path / "out" / "imagesTr" / "prostate_00.nii.gz"
    assert nib.load(image).shape == (*layouts.SHAPE, 2)
    assert image.is_symlink()
    assert image.readlink().is_absolute()
    assert description(tmp_path / "out")["channels"] == ["T2", "ADC"]


@pytest.mark.parametrize("link", ["hard", "copy"])
def test_hard_links_and_copies(prepare, tmp_path, link):
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a", "b"]))
    assert prepare(source, "--link", link)[0] == 0
    image, origin = tmp_path / "out/imagesTr/a.nii.gz", source / "Dataset001_Boxes/imagesTr/a_0000.nii.gz"
    assert not image.is_symlink()
    assert image.samefile(origin) == (link == "hard")
    assert image.read_bytes() == origin.read_bytes()
    assert names(image.parent) == ["a.nii.gz", "b.nii.gz"]


def test_nnunet_with_overlapping_regions_and_several_channels(prepare, tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing": 3, "ignore": 4}
    files = layouts.nnunet(["a", "b"], ("T1", "FLAIR"), labels, regions_class_order=[1, 2, 3])
    assert prepare(layouts.write_folder(tmp_path / "in", files))[0] == 0
    root = tmp_path / "out"
    assert names(root / "imagesTr") == ["a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"]
    assert description(root) == {
        "name": "Dataset001_Boxes",
        "labels": {"background": 0, "label 1": 1, "label 2": 2, "enhancing": 3, "ignore": 4},
        "regions": {"whole tumor": ["label 1", "label 2", "enhancing"], "tumor core": ["label 2", "enhancing"]},
        "channels": ["T1", "FLAIR"],
    }


def test_test_images_without_a_channel_matter_only_if_they_are_wanted(prepare, tmp_path):
    files = layouts.nnunet(["a"], ("T1", "FLAIR"))
    files |= {f"Dataset001_Boxes/imagesTs/{name}_0000.nii.gz": layouts.image() for name in ("x", "y")}
    files["Dataset001_Boxes/imagesTs/y_0001.nii.gz"] = layouts.image()
    source = layouts.write_folder(tmp_path / "in", files)
    assert prepare(source)[0] == 0
    other = tmp_path / "other"
    assert_one_line(prepare(source, "--with_test", output=other), "1 complete test case; missing: x (no _0001)")
    assert prepare(source, "--with_test", "--allow_missing", output=other)[0] == 0
    assert names(other / "imagesTs") == ["y_0000.nii.gz", "y_0001.nii.gz"]


def test_nnunet_with_explicit_paths(prepare, tmp_path):
    inside = {"images": ["scans/x.nii.gz"], "label": "./masks/y.nii.gz"}
    outside = {"images": ["../elsewhere/x.nii.gz"], "label": "./masks/y.nii.gz"}
    files = {"Dataset001_Boxes/scans/x.nii.gz": layouts.image(), "Dataset001_Boxes/masks/y.nii.gz": layouts.label()}
    files |= layouts.nnunet([], dataset={"case": inside, "other": outside}, numTraining=2)
    source = layouts.write_folder(tmp_path / "in", files)
    assert_one_line(prepare(source), "found 1 complete training case, expected 2; missing: other (no image)")
    assert prepare(source, "--allow_missing")[0] == 0
    assert names(tmp_path / "out" / "imagesTr") == names(tmp_path / "out" / "labelsTr") == ["case.nii.gz"]


def test_nnunet_with_other_endings_is_refused_by_name(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a"], file_ending=".nrrd"))
    assert_one_line(prepare(source), "dataset.json", 'found the file_ending ".nrrd", expected .nii.gz or .nii')


def test_btcv_from_its_zip(prepare, tmp_path):
    status, out, err = prepare(layouts.write_zip(tmp_path / "RawData.zip", layouts.btcv()), "--with_test")
    assert status == 0, err
    root = tmp_path / "out"
    assert len(names(root / "imagesTr")) == 30
    assert names(root / "imagesTr") == names(root / "labelsTr")
    assert names(root / "imagesTs") == ["img0061.nii.gz"]
    assert description(root)["labels"]["pancreas"] == 11
    assert "24 and 6 (SwinUNETR)" in out


def test_flare22_from_the_zips_in_its_folder(prepare, tmp_path):
    source = tmp_path / "FLARE22_LabeledCase50"
    for part in ("images", "labels"):
        files = {name: content for name, content in layouts.flare22().items() if name.startswith(part)}
        layouts.write_zip(source / f"{part}.zip", files)
    status, out, err = prepare(source)
    assert status == 0, err
    assert "(--kind flare22, found by its files)" in out
    assert names(tmp_path / "out" / "imagesTr")[0] == "FLARE22_Tr_0001.nii.gz"
    assert len(names(tmp_path / "out" / "labelsTr")) == 50
    assert description(tmp_path / "out")["labels"]["left kidney"] == 13


@pytest.mark.parametrize("packed", [False, True])
def test_totalsegmentator_merges_masks_and_keeps_its_split(prepare, tmp_path, packed):
    masks = {"liver": (0, 1, 1, 0), "aorta": (0, 0, 1, 0), "spleen": (1, 0, 0, 0)}
    subjects = ["s0000", "s0001", "s0003", "s0004"]
    files = layouts.totalsegmentator(subjects, masks)
    del files["s0003/segmentations/liver.nii.gz"]
    source = layouts.write_zip(tmp_path / "t.zip", files) if packed else layouts.write_folder(tmp_path / "in", files)
    status, out, err = prepare(source, "--classes", "aorta", "liver")
    assert status == 0, err
    root = tmp_path / "out"
    assert voxels(root / "labelsTr/s0000.nii.gz").ravel()[:4].tolist() == [0, 2, 2, 0]
    assert voxels(root / "labelsTr/s0003.nii.gz").ravel()[:4].tolist() == [0, 0, 1, 0]
    assert "voxels in several masks: 90" in out
    assert "masks that are not there and count as empty: 1" in out
    assert (
        "classes in the order of their values: background, aorta, liver; a later one overwrites an earlier one" in out
    )
    fold = {"training": ("s0000", "s0001"), "validation": ("s0003",)}
    provenance = "meta.csv of TotalSegmentator v2, CT"
    split = SplitFile("totalsegmentator", provenance, None, (fold,), ("s0004",))
    assert read_split_file(root / "split.json") == split
    assert names(root) == [".prepared.jsonl", "dataset.json", "imagesTr", "labelsTr", "split.json"]
    assert_one_line(
        prepare(source, "--classes", "heart", output=tmp_path / "other"),
        "--classes: found heart, expected some of aorta, liver, spleen",
    )


def test_totalsegmentator_mri_has_no_validation_part_and_gets_one(prepare, tmp_path):
    subjects = [f"s{number:04d}" for number in range(22)]
    files = layouts.totalsegmentator(subjects, {"liver": (0, 1)}, "mri")
    files["meta.csv"] = files["meta.csv"].replace(b";val", b";train").replace(b"s0003;60;test", b"s0003;60;train")
    source = layouts.write_folder(tmp_path / "in", files)
    status, out, err = prepare(source)
    assert status == 0, err
    assert "note: meta.csv has no cases for validation: 1 training case of its 4 by seed 0" in out
    split = read_split_file(tmp_path / "out" / "split.json")
    (fold,) = split.folds
    assert (split.seed, sorted([*fold["training"], *fold["validation"]])) == (0, subjects[:4])
    assert (len(fold["validation"]), list(split.test)) == (1, subjects[4:])


def test_a_damaged_subject_is_not_in_the_split(prepare, tmp_path):
    subjects = ["s0000", "s0001", "s0002"]
    files = layouts.totalsegmentator(subjects, {"liver": (0, 1)}) | {"s0001/ct.nii.gz": b"404"}
    assert prepare(layouts.write_folder(tmp_path / "in", files), "--allow_missing")[0] == 0
    (fold,) = read_split_file(tmp_path / "out" / "split.json").folds
    assert fold == {"training": ("s0000",), "validation": ("s0002",)}


def test_an_edited_split_is_kept(prepare, tmp_path):
    subjects = ["s0000", "s0001", "s0002"]
    source = layouts.write_folder(tmp_path / "in", layouts.totalsegmentator(subjects, {"liver": (0, 1)}))
    path = tmp_path / "out" / "split.json"
    status, out, _ = prepare(source)
    assert (status, "is kept" in out) == (0, False)
    assert not read_split_file(path).test  # the table has no test cases here
    path.write_text("mine")
    status, out, _ = prepare(source)
    assert status == 0
    assert f"warning: {path} is kept, though this command would write another content" in out
    assert path.read_text() == "mine"


def test_totalsegmentator_has_all_classes_in_alphabetical_order(prepare, tmp_path):
    masks = {"liver": (0, 0), "aorta": (0, 0)}
    source = layouts.write_folder(tmp_path / "in", layouts.totalsegmentator(["s0000"], masks, "mri"))
    (source / "meta.csv").unlink()
    status, out, _ = prepare(source)
    assert status == 0
    assert "TotalSegmentator v2, MRI" in out
    assert description(tmp_path / "out")["labels"] == {"background": 0, "aorta": 1, "liver": 2}
    assert "empty label maps: 1" in out
    assert not (tmp_path / "out" / "split.json").exists()


def test_totalsegmentator_names_the_subjects_of_its_table_that_are_missing(prepare, tmp_path):
    files = layouts.totalsegmentator(["s0000", "s0001"], {"liver": (0, 1)})
    del files["s0001/ct.nii.gz"], files["s0001/segmentations/liver.nii.gz"]
    assert_one_line(prepare(layouts.write_folder(tmp_path / "in", files)), "found 1 complete", "missing: s0001")


def test_brats_has_the_labels_of_its_year(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "old", layouts.brats(["BraTS2021_00000", "BraTS2021_00002"]))
    status, out, err = prepare(source)
    assert status == 0, err
    root = tmp_path / "out"
    assert "(--kind brats, found by its files)" in out
    assert description(root)["labels"]["enhancing tumor"] == 4
    assert description(root)["channels"]["T1 contrast"] == "_t1ce"
    assert names(root / "imagesTr")[:2] == ["BraTS2021_00000_flair.nii.gz", "BraTS2021_00000_t1.nii.gz"]
    assert names(root / "labelsTr") == ["BraTS2021_00000.nii.gz", "BraTS2021_00002.nii.gz"]
    new = layouts.write_folder(tmp_path / "new", layouts.brats(["BraTS-GLI-00000-000"], **layouts.OF_2023))
    other = tmp_path / "other"
    assert_one_line(prepare(new, output=other), "--year: found none, expected 2023 or 2024")
    assert_one_line(prepare(new, "--year", "2021", output=other), "--year: found 2021, expected 2023 or 2024")
    assert_one_line(prepare(source, "--year", "2024", output=other), "--year: found 2024, expected 2021")
    assert prepare(new, "--year", "2024", output=other)[0] == 0
    assert description(other)["labels"]["resection cavity"] == 4
    assert names(other / "imagesTr")[0] == "BraTS-GLI-00000-000-t1c.nii.gz"


def test_a_case_without_one_of_its_channels_is_missing(prepare, tmp_path):
    files = layouts.brats(["BraTS2021_00000", "BraTS2021_00002"])
    del files["BraTS2021_00002/BraTS2021_00002_t2.nii.gz"]
    assert_one_line(prepare(layouts.write_folder(tmp_path / "in", files)), "missing: BraTS2021_00002 (no _t2)")


@pytest.mark.parametrize(
    ("files", "images"),
    [
        (layouts.brats(["BraTS2021_00000", "BraTS2021_00002"]), 4),
        (layouts.nnunet(["a", "b"], ("T1", "FLAIR")), 2),
        (layouts.nnunet(["amos_0001", "amos_0002"]), 1),
        (layouts.msd("prostate", [0, 1], digits=2, channels=2), 1),
        (layouts.kits(layouts.KITS21, [0, 1]), 1),
        (layouts.totalsegmentator(["s0000", "s0001"], {"liver": (0, 1)}), 1),
    ],
)
def test_training_finds_what_was_prepared(prepare, tmp_path, files, images):
    status, _, err = prepare(layouts.write_folder(tmp_path / "in", files), "--allow_missing")
    assert status == 0, err
    root = tmp_path / "out"
    described = DatasetDescription.from_json(PLACEHOLDERS | description(root), "dataset.json")
    cases = pair_cases(root / "imagesTr", root / "labelsTr", len(described.channels), described.endings)
    assert len(cases) == 2
    assert [len(image_files(case)) for case in cases] == [images, images]
    reports = [examine_case(case, "training", described, full=True) for case in cases]
    assert [problem for report in reports for problem in report.problems] == []
