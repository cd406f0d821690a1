"""Files of a plan: a description of the dataset, and the flags of main_train.py that go with it."""

import json
import shlex
import tempfile
from pathlib import Path

from engine.data.plan import Plan
from engine.runtime.errors import InputError
from engine.runtime.files import write_text


def check_plan_files(file: Path) -> None:
    """Check, before all volumes are read, that the two files of a plan can be written.

    Raises:
        InputError: the name is not that of a .json file, its folder cannot be written to, or a file exists.
    """
    if file.suffix.lower() != ".json":
        raise InputError(f"--write_description: found {file}, expected a name that ends with .json")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            existing = [path for path in (file, flags_file(file)) if path.is_symlink() or path.exists()]
    except OSError as error:
        expected = "expected a file in a folder that exists"
        raise InputError(f"--write_description: {file} cannot be written ({error.strerror}), {expected}") from error
    if existing:
        raise InputError(f"--write_description: found {existing[0]}, expected a new name, since no file is overwritten")


def flags_file(file: Path) -> Path:
    """Return the path of the flags of main_train.py beside a description."""
    return file.with_suffix(".args")


def write_plan(file: Path, plan: Plan, fix_affine: bool) -> None:
    """Write a plan: the description, one field per line, and the flags of main_train.py that go with it.

    Args:
        file: path of the description.
        plan: the plan.
        fix_affine: whether the plan needs --fix_affine.
    Raises:
        InputError: one of the files exists by now, or cannot be written.
    """
    check_plan_files(file)
    fields = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in plan.description.to_json().items()]
    flags = [
        f"# Planned by tools.check_data for {plan.description.name}; edit both files as you like.",
        f"--dataset {shlex.quote(str(file))}",
        f"--roi_size {' '.join(map(str, plan.roi_size))}",
        *(["--fix_affine"] if fix_affine else []),
    ]
    write_text(flags_file(file), "\n".join(flags) + "\n")
    write_text(file, "{\n" + ",\n".join(fields) + "\n}\n")
