"""NIfTI files: damage is reported, and a label map is written on the grid of its image."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from conftest import flip_a_bit, write_nifti

from engine.data.nifti import encode_labels, open_volume, read_voxels
from engine.runtime.errors import InputError


def test_a_flipped_bit_is_reported(tmp_path):
    path = tmp_path / "image.nii.gz"
    write_nifti(path, np.random.default_rng(0).normal(5, 1, (20, 20, 20)).astype(np.float32))
    flip_a_bit(path)
    with pytest.raises(InputError, match="CRC check failed"):
        read_voxels(str(path))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_written_labels_keep_the_header_and_drop_the_scaling(tmp_path, kind):
    image = kind(np.zeros((3, 4, 5), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(2.5, 10)
    image.header["cal_max"] = 400
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, code="mni")
    nib.save(image, tmp_path / "image.nii")
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    (tmp_path / "labels.nii.gz").write_bytes(encode_labels(labels, str(tmp_path / "image.nii")))
    written = nib.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(read_voxels(str(tmp_path / "labels.nii.gz")), labels)
    assert (written.get_data_dtype(), float(written.header["cal_max"])) == (np.uint8, 0)
    assert (int(written.header["sform_code"]), written.header.get_xyzt_units()[0]) == (4, "mm")
    assert isinstance(written, kind)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_content_says_whether_a_file_is_compressed(tmp_path, name, kind):
    """Whatever its name says."""
    image = kind(np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))
    content = image.to_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name == "a.nii" else content)
    assert np.array_equal(read_voxels(str(tmp_path / name)), image.dataobj)
    assert np.array_equal(open_volume(str(tmp_path / name)).affine, image.affine)
    (tmp_path / name).write_bytes(gzip.compress(content)[:-9] if name == "a.nii" else content[:-1])
    with pytest.raises(InputError, match=r"a\.nii.*: cannot be read"):
        read_voxels(str(tmp_path / name))
