"""Metadata of bundles: the fields of the schema, and what MONAI and MONAI Label read from them."""

import copy

import pytest
from conftest import DESCRIPTION
from monai.bundle.properties import MetaProperties
from monai.utils import BundlePropertyConfig

from engine.data.datasets import DATASETS, DatasetDescription
from engine.weights.checkpoints import NetworkConfig
from integrations.monai_bundle.code import ROOT
from integrations.monai_bundle.metadata import PACKAGES_OF, check_metadata, install_commands, make_metadata
from networks import NETWORKS

BOXES = DatasetDescription.from_json(DESCRIPTION, "boxes.json")


def metadata_of(description, network="REP3D"):
    config = NetworkConfig.for_dataset(description, network, (32, 32, 16), {})
    return make_metadata(config, description, "boxes", "0.2.0", "A. Author")


@pytest.mark.parametrize("description", [BOXES, *DATASETS.values()], ids=lambda description: description.name)
def test_metadata_have_the_fields_of_the_schema(description):
    assert check_metadata(metadata_of(description)) == []


def test_metadata_say_what_the_network_reads_and_predicts():
    metadata = metadata_of(BOXES)
    tensors = metadata["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert (image["modality"], image["value_range"], image["spatial_shape"]) == ("MR", [], [32, 32, 16])
    assert pred["channel_def"] == {"0": "background", "1": "left", "2": "right"}
    assert (metadata["version"], metadata["authors"]) == ("0.2.0", "A. Author")
    ct = metadata_of(DATASETS["amos"])["network_data_format"]["inputs"]["image"]
    assert (ct["modality"], ct["value_range"]) == ("CT", [0, 1])


def test_every_field_that_monai_reads_is_there():
    metadata = metadata_of(BOXES)
    for name, entry in MetaProperties.items():
        value = metadata
        for key in entry[BundlePropertyConfig.ID].split("::")[1:]:
            value = value[key]
        assert value, name


def test_packages_of_single_networks_are_listed_and_installed_without_dependencies():
    assert "dynamic-network-architectures" in metadata_of(BOXES, "ResEncUNet")["required_packages_version"]
    assert "dynamic-network-architectures" not in metadata_of(BOXES)["required_packages_version"]
    assert "--no-deps dynamic-network-architectures==" in install_commands("ResEncUNet")
    assert "--no-deps" not in install_commands("REP3D")
    lines = (ROOT / "requirements-optional.txt").read_text().splitlines()
    optional = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert sorted(optional) == sorted(package for packages in PACKAGES_OF.values() for package in packages)
    assert set(PACKAGES_OF) <= set(NETWORKS)


def damaged(path, value):
    metadata = copy.deepcopy(metadata_of(BOXES))
    *parents, last = path
    place = metadata
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return metadata


INPUT = ("network_data_format", "inputs", "image")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("monai_version",), None, "metadata: found nothing for monai_version, expected str"),
        (("required_packages_version",), ["nibabel"], "found list for required_packages_version, expected dict"),
        (("network_data_format", "outputs"), {}, "network_data_format: found no outputs"),
        ((*INPUT, "dtype"), None, "image: found nothing for dtype, expected str"),
        ((*INPUT, "num_channels"), 2, "image: found channel_def of ['0'], expected ['0', '1']"),
        ((*INPUT, "value_range"), [0], "image: found value_range [0], expected two numbers or none"),
        ((*INPUT, "spatial_shape"), [32, 32, 0], "found spatial_shape [32, 32, 0], expected positive numbers"),
    ],
)
def test_a_wrong_structure_is_found(path, value, problem):
    (found,) = check_metadata(damaged(path, value))
    assert problem in found
