"""Archives that are damaged, of another layout, or prepared before: a line each, status 2, nothing half-written."""

import errno
import gzip
import json
import zipfile

import archive_layouts as layouts
import pytest
from archive_layouts import names
from conftest import assert_one_line, flip_a_bit

from engine.archives import prepare as preparation
from engine.archives.convert import place
from engine.archives.sources import open_source
from engine.runtime.child_processes import locked
from engine.runtime.files import write_whole

OTHERS = ["hippocampus_001.nii.gz", "hippocampus_004.nii.gz"]


@pytest.fixture
def prepare(tmp_path, capsys):
    """Run the tool; returns (exit status, stdout, stderr)."""
    return lambda source, *flags, output=tmp_path / "out": layouts.prepare(capsys, source, output, *flags)


@pytest.fixture
def hippocampus(tmp_path):
    """Folder of MSD Hippocampus with three cases."""
    return layouts.write_folder(tmp_path / "in", layouts.msd("hippocampus", [1, 3, 4]))


def test_a_folder_of_something_else(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", {"scans/a.dcm": b"", "b.txt": b""})
    assert_one_line(
        prepare(source), "--source: found b.txt, scans/ in", "expected an archive of amos, amos_mri, kits19"
    )
    assert_one_line(
        prepare(source, "--kind", "amos"), "found b.txt, scans/", "expected the layout of AMOS22, CT: amos22/"
    )
    assert_one_line(prepare(source, "--kind", "btcv"), "0 images of BTCV", "expected Training/ with img/img0001.nii.gz")
    assert not (tmp_path / "out").exists()


def test_a_kind_that_is_not_that_of_the_archive(prepare, hippocampus):
    assert_one_line(prepare(hippocampus, "--kind", "flare22"), "expected FLARE22_LabeledCase50/", "are those of msd")


def test_amos_without_a_kind(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.amos(layouts.AMOS_CT))
    assert_one_line(prepare(source), "--kind: found none, expected amos or amos_mri")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip"])
def test_a_source_that_is_not_there(prepare, tmp_path, name):
    assert_one_line(
        prepare(tmp_path / name), f"--source: {tmp_path / name} not found, expected a folder, or an archive"
    )


def test_a_source_of_another_format(prepare, tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    assert_one_line(prepare(tmp_path / "a.rar"), "--source: found", "a.rar, expected a folder, or an archive")


@pytest.mark.parametrize("extra", [0, 100, 600])  # at different places of a member
@pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz"])
def test_an_archive_that_is_cut_off(prepare, tmp_path, ending, extra):
    whole = tmp_path / f"whole{ending}"
    write = layouts.write_zip if ending == ".zip" else layouts.write_tar
    content = write(whole, layouts.msd("hippocampus", range(30))).read_bytes()
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(content[: len(content) // 2 + extra])
    assert_one_line(prepare(cut), f"{cut}: cannot be read (", "expected a whole archive; download it again")
    assert not (tmp_path / "out").exists()


def test_a_zip_in_a_folder_that_is_cut_off(prepare, tmp_path):
    path = layouts.write_zip(tmp_path / "in" / "images.zip", layouts.flare22())
    path.write_bytes(path.read_bytes()[:1000])
    assert_one_line(prepare(tmp_path / "in"), f"{path}: cannot be read (", "download it again")


def test_a_zip_with_a_password(prepare, tmp_path):
    path = layouts.write_zip(tmp_path / "a.zip", layouts.msd("hippocampus", [1]))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # flag of encryption in the first entry of the directory
    path.write_bytes(content)
    assert_one_line(prepare(path), f"{path}: Task04_Hippocampus/", "is encrypted, expected")


@pytest.mark.parametrize("name", ["../../evil.nii.gz", "/evil.nii.gz", "a\\..\\..\\evil.nii.gz"])
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_members_that_lead_out_of_the_archive(prepare, tmp_path, name, ending):
    write = layouts.write_zip if ending == ".zip" else layouts.write_tar
    path = write(tmp_path / f"a{ending}", layouts.msd("hippocampus", [1]) | {name: b"evil"})
    assert_one_line(prepare(path), f"{path}: found the member", "evil", "expected names that stay inside the archive")
    assert names(tmp_path) == [f"a{ending}"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-30])


def replace_by_text(path):
    path.write_bytes(b"404: Not Found")


def drop_voxels(path):
    """Drop voxels in a file that stays whole as a .gz file."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-10]))


@pytest.mark.parametrize("damage", [truncate, replace_by_text, drop_voxels, flip_a_bit])
@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_a_damaged_member_is_named_and_left_out_if_that_is_allowed(prepare, tmp_path, damage, folder):
    source = layouts.write_folder(tmp_path / "in", layouts.msd("hippocampus", [1, 3, 4], side=12))
    path = source / "Task04_Hippocampus" / folder / "hippocampus_003.nii.gz"
    damage(path)
    status, out, _ = prepare(source, "--allow_missing")
    assert status == 0
    assert "found 3 complete training cases, expected 260" in out
    assert f"warning: {path}: cannot be read (" in out
    assert "2 training cases" in out
    assert names(tmp_path / "out" / "imagesTr") == names(tmp_path / "out" / "labelsTr") == OTHERS


def test_the_same_command_goes_on_after_a_damaged_member_was_replaced(prepare, tmp_path):
    files = layouts.nnunet(["a", "b", "c"])
    source = layouts.write_folder(tmp_path / "in", files)
    damaged = source / "Dataset001_Boxes" / "imagesTr" / "b_0000.nii.gz"
    truncate(damaged)
    root = tmp_path / "out"
    assert_one_line(prepare(source), f"{damaged}: cannot be read (", "delete it and fetch it again")
    assert names(root / "imagesTr") == names(root / "labelsTr") == ["a.nii.gz", "c.nii.gz"]
    assert not (root / "dataset.json").exists()
    damaged.write_bytes(files["Dataset001_Boxes/imagesTr/b_0000.nii.gz"])
    assert prepare(source)[0] == 0
    assert names(root / "imagesTr") == names(root / "labelsTr") == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert names(root) == [".prepared.jsonl", "dataset.json", "imagesTr", "labelsTr"]


def test_a_damaged_member_of_a_zip(prepare, tmp_path):
    path = layouts.write_zip(tmp_path / "a.zip", layouts.nnunet(["a", "b"]))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("Dataset001_Boxes/imagesTr/b_0000.nii.gz")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + 40] ^= 1
    path.write_bytes(content)
    assert_one_line(prepare(path), f"{path}: {info.filename}: cannot be read (", "expected a whole NIfTI file")
    assert names(tmp_path / "out" / "imagesTr") == ["a.nii.gz"]


def test_labels_of_another_shape_or_with_other_values(prepare, tmp_path):
    small, odd = layouts.label(shape=(3, 3, 3)), layouts.label(0, 17)
    files = layouts.amos(layouts.AMOS_MRI, amos_0508=small, amos_0509=odd)
    status, _, err = prepare(layouts.write_folder(tmp_path / "in", files), "--kind", "amos_mri")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2
    assert len(lines) == 2
    assert "labelsTr/amos_0508.nii.gz: found shape 3 x 3 x 3, expected 6 x 5 x 4 as in its image" in lines[0]
    assert (
        "labelsTr/amos_0509.nii.gz: found label values 17 (60 voxels), expected whole numbers from 0 to 15" in lines[1]
    )
    assert "amos_0508.nii.gz" not in names(tmp_path / "out" / "imagesTr")


def test_nothing_that_is_whole_is_an_error_whatever_is_allowed(prepare, tmp_path):
    files = layouts.nnunet(["a"])
    damaged = layouts.write_folder(tmp_path / "in", files | {"Dataset001_Boxes/imagesTr/a_0000.nii.gz": b"404"})
    assert_one_line(prepare(damaged, "--allow_missing"), "a_0000.nii.gz: cannot be read (")
    files["Dataset001_Boxes/labelsTr/b.nii.gz"] = files.pop("Dataset001_Boxes/labelsTr/a.nii.gz")
    apart, other = layouts.write_folder(tmp_path / "apart", files), tmp_path / "other"
    assert_one_line(prepare(apart, "--allow_missing", output=other), "--source: found no complete case in", apart)
    assert not other.exists()


def test_a_description_that_is_not_json(prepare, hippocampus):
    path = hippocampus / "Task04_Hippocampus" / "dataset.json"
    path.write_text('{"modality": {"0": "CT"},}')
    assert_one_line(prepare(hippocampus), f"{path}: is not JSON")


@pytest.mark.parametrize("labels", [["a", "b"], None, {"background": 0, "a": 0.5}])
@pytest.mark.parametrize("files", [layouts.msd("hippocampus", [1]), layouts.nnunet(["a"])], ids=["msd", "nnunet"])
def test_labels_that_are_no_names_with_numbers(prepare, tmp_path, files, labels):
    (path,) = [name for name in files if name.endswith("dataset.json")]
    described = json.loads(files[path]) | {"labels": labels}
    source = layouts.write_folder(tmp_path / "in", files | {path: json.dumps(described).encode()})
    assert_one_line(prepare(source), f"{source / path}: found labels ", "expected names with whole numbers")


def test_two_datasets_in_one_folder(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.msd("hippocampus", [1]) | layouts.msd("pancreas", [1]))
    assert_one_line(prepare(source), "found 2 datasets (", "expected one; name its folder")


def test_two_files_for_one_case(prepare, tmp_path):
    files = layouts.kits(layouts.KITS21, [1], folder="a") | layouts.kits(layouts.KITS21, [1], folder="b")
    result = prepare(layouts.write_folder(tmp_path / "in", files))
    assert_one_line(result, "a/case_00001/imaging.nii.gz and", "expected one of them for case_00001")


def test_names_that_no_description_has(prepare, tmp_path):
    files = layouts.nnunet(["a"], labels={"background": 0, "mean": 1})
    assert_one_line(
        prepare(layouts.write_folder(tmp_path / "in", files)), "--source: ", 'labels: found the name "mean"'
    )


def test_a_flag_of_another_kind(prepare, hippocampus):
    assert_one_line(prepare(hippocampus, "--cases", "210"), "--cases: found with --kind msd, expected only with kits21")


def test_a_link_to_a_member_of_an_archive(prepare, tmp_path):
    path = layouts.write_zip(tmp_path / "a.zip", layouts.nnunet(["a"]))
    assert_one_line(
        prepare(path, "--link", "hard"), "--link: found hard with the archive", "expected it only with a folder"
    )


def test_a_disk_without_links_stops_at_once(prepare, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a", "b", "c"]))
    assert_one_line(prepare(source, "--link", "hard"), "--link: ", "Invalid cross-device link", "or --link copy")
    assert names(tmp_path / "out" / "imagesTr") == []
    assert prepare(source, "--link", "copy")[0] == 0  # into the same folder
    assert_one_line(prepare(source, "--link", "hard"), "prepared with --link copy, expected hard")


@pytest.mark.parametrize("inside", ["in", "in/out", "."])
def test_an_output_that_overlaps_with_the_source(prepare, hippocampus, tmp_path, inside):
    before = layouts.snapshot(hippocampus)
    assert_one_line(prepare(hippocampus, output=tmp_path / inside), "--output: found", "expected a folder apart from")
    assert layouts.snapshot(hippocampus) == before


def test_an_output_with_files_of_others(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a"]))
    mine = tmp_path / "out" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert_one_line(
        prepare(source), f"--output: found mine.txt in {tmp_path / 'out'}, expected an empty or absent folder"
    )
    assert_one_line(prepare(source, output=mine), f"--output: found the file {mine}, expected a folder")
    assert layouts.snapshot(tmp_path / "out") == {"mine.txt": b"mine"}


def test_another_archive_or_other_flags_into_the_same_folder(prepare, tmp_path):
    first = layouts.write_folder(tmp_path / "first", layouts.nnunet(["a"]))
    second = layouts.write_folder(tmp_path / "second", layouts.nnunet(["b"]))
    assert prepare(first)[0] == 0
    before = layouts.snapshot(tmp_path / "out")
    assert_one_line(prepare(second), f"prepared with --source {first}, expected {second}, or another folder")
    assert_one_line(prepare(first, "--link", "copy"), "prepared with --link symbolic, expected copy")
    assert_one_line(prepare(first, "--with_test"), "prepared with --with_test off, expected on, or another folder")
    assert layouts.snapshot(tmp_path / "out") == before


def count_conversions(monkeypatch, stop_at=None):
    """Record the cases that are converted from now on, and interrupt the one of this number."""
    seen, convert = [], preparation.convert_case

    def record(case, *more):
        seen.append(case.id)
        if len(seen) == stop_at:
            raise KeyboardInterrupt
        return convert(case, *more)

    monkeypatch.setattr(preparation, "convert_case", record)
    return seen


@pytest.mark.parametrize("ending", ["", ".zip", ".tar.gz"])
def test_an_interrupted_command_goes_on(prepare, tmp_path, monkeypatch, ending):
    files = layouts.amos({"Tr": layouts.AMOS_MRI["Tr"][:9], "Va": []}, amos_0507=layouts.label(0, 14))
    write = {"": layouts.write_folder, ".zip": layouts.write_zip, ".tar.gz": layouts.write_tar}[ending]
    source, root = write(tmp_path / f"amos{ending}", files), tmp_path / "out"
    flags = ("--kind", "amos_mri", "--num_workers", "1", "--allow_missing")
    with monkeypatch.context() as patch:
        count_conversions(patch, stop_at=6)
        assert prepare(source, *flags)[0] == 130
    assert not (root / "dataset.json").exists()
    record = root / ".prepared.jsonl"
    record.write_text(record.read_text()[:-5])  # a kill may leave half a line
    (root / "imagesTr" / "amos_0510.nii.gz").unlink()
    (root / "imagesTr" / "amos_0509.nii.gz").unlink()
    (root / "imagesTr" / "amos_0509.nii.gz").write_bytes(b"half")
    seen = count_conversions(monkeypatch)
    status, out, _ = prepare(source, *flags)
    assert status == 0
    assert {"amos_0509", "amos_0510"} <= set(seen)
    assert 5 < len(seen) < 9
    assert "label maps with values that became background: 1\nvoxels that became background: 60\n" in out
    assert names(root) == [".prepared.jsonl", "dataset.json", "imagesTr", "labelsTr"]
    other = tmp_path / "other"
    assert prepare(source, *flags, output=other)[0] == 0
    assert {name: content for name, content in layouts.snapshot(root).items() if name != ".prepared.jsonl"} == {
        name: content for name, content in layouts.snapshot(other).items() if name != ".prepared.jsonl"
    }


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_link_that_a_kill_has_left_is_never_written_to(tmp_path, monkeypatch, link):
    source = layouts.write_folder(tmp_path / "in", {"a.nii.gz": layouts.label()})
    before, path = layouts.snapshot(source), tmp_path / "a.nii.gz"

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", kill)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            place(open_source(source).members["a.nii.gz"], path, link)
    assert len(names(tmp_path)) == 2
    write_whole(path, lambda file: file.write(b"other values"))
    assert layouts.snapshot(source) == before


def test_the_same_command_twice_at_once(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a"]))
    with locked(tmp_path / "out", "--output"):
        assert_one_line(prepare(source), "--output: found a process that runs in", tmp_path / "out")
    assert prepare(source)[0] == 0


def test_a_kill_before_anything_is_recorded(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a"]))
    layouts.write_folder(tmp_path / "out", {"..prepared.jsonl.part": b"{"})
    assert prepare(source)[0] == 0
    assert names(tmp_path / "out") == [".prepared.jsonl", "dataset.json", "imagesTr", "labelsTr"]


def test_an_edited_description_is_kept(prepare, tmp_path):
    source = layouts.write_folder(tmp_path / "in", layouts.nnunet(["a"]))
    assert prepare(source)[0] == 0
    (tmp_path / "out" / "dataset.json").write_text("{}")
    assert prepare(source)[0] == 0
    assert (tmp_path / "out" / "dataset.json").read_text() == "{}"


def test_masks_on_another_grid(prepare, tmp_path):
    files = layouts.totalsegmentator(["s0000"], {"liver": (0, 1)})
    files["s0000/segmentations/liver.nii.gz"] = layouts.label(shape=(3, 3, 3))
    result = prepare(layouts.write_folder(tmp_path / "in", files))
    assert_one_line(result, "segmentations/liver.nii.gz: found shape 3 x 3 x 3, expected 6 x 5 x 4")


def test_a_table_of_splits_with_other_columns(prepare, tmp_path):
    files = layouts.totalsegmentator(["s0000"], {"liver": (0, 1)}) | {"meta.csv": b"image_id,split\ns0000,train\n"}
    assert_one_line(
        prepare(layouts.write_folder(tmp_path / "in", files)), "meta.csv: found the row", 'separated by ";"'
    )
