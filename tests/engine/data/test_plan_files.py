"""The two files of a plan: written whole, and never over others."""

import shlex

import pytest
from conftest import DESCRIPTION

import main_train
from engine.data.datasets import DatasetDescription
from engine.data.plan import Plan
from engine.data.plan_files import check_plan_files, flags_file, write_plan
from engine.runtime.errors import InputError

DESCRIBED = DatasetDescription.from_json(DESCRIPTION, "test")
PLAN = Plan(DESCRIBED, (32, 48, 16), [], [], {})


@pytest.mark.parametrize("name", ["plan.json", "my plan.json", "Plan.JSON"])
@pytest.mark.parametrize("fix_affine", [False, True])
def test_both_files_are_read_back_by_training(tmp_path, name, fix_affine):
    file = tmp_path / name
    write_plan(file, PLAN, fix_affine)
    assert DatasetDescription.read(file) == DESCRIBED
    words = shlex.split(flags_file(file).read_text(), comments=True)
    args = main_train.parse_args([*words, "--root", "data", "--output", "run"])
    assert (args.dataset, args.roi_size, args.fix_affine) == (str(file), [32, 48, 16], fix_affine)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, flags_file(file).name])


@pytest.mark.parametrize(
    ("name", "existing", "part"),
    [
        ("plan.txt", None, "plan.txt, expected a name that ends with .json"),
        ("there/plan.json", None, "(No such file or directory), expected a file in a folder that exists"),
        (f"{'n' * 300}.json", None, "(File name too long), expected a file in a folder that exists"),
        ("plan.json", "plan.json", "plan.json, expected a new name, since no file is overwritten"),
        ("plan.json", "plan.args", "plan.args, expected a new name, since no file is overwritten"),
    ],
)
def test_other_names_and_existing_files_are_refused(tmp_path, name, existing, part):
    if existing is not None:
        (tmp_path / existing).write_text("mine")
    for attempt in (lambda: check_plan_files(tmp_path / name), lambda: write_plan(tmp_path / name, PLAN, False)):
        with pytest.raises(InputError, match="--write_description: ") as error:
            attempt()
        assert str(error.value).endswith(part)
    assert [path.read_text() for path in tmp_path.iterdir()] == (["mine"] if existing else [])


def test_a_link_to_nowhere_is_not_replaced(tmp_path):
    (tmp_path / "plan.json").symlink_to("nowhere")
    with pytest.raises(InputError, match="expected a new name"):
        write_plan(tmp_path / "plan.json", PLAN, False)
    assert (tmp_path / "plan.json").is_symlink()
