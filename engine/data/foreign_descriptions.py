"""What the dataset.json of other programs say of a dataset, in the terms of this one.

Sources: http://medicaldecathlon.com, and the page on dataset formats of nnU-Net's documentation.
"""

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

# Fields that a user may add to a file of another program, which needs some of them.
OWN_FIELDS = (
    *("name", "modality", "regions", "surface_tolerance", "channels", "spacing", "intensity", "nan", "$schema"),
)
# Further fields of the two programs, which say nothing that is needed here.
OTHER_FIELDS = (
    *("channel_names", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer", "dataset"),
    *("description", "reference", "licence", "license", "release", "relase", "tensorImageSize", "converted_by"),
    *("numTraining", "numTest", "training", "test", "validation", "numValidation", "citation"),
)
# Names of channels for which nnU-Net does not use the z-score.
OTHER_RULES = {"ct", "nonorm", "rescale_to_0_1", "rgb_to_0_1"}


def translate(values: dict[str, Any], path: Path) -> tuple[dict[str, Any], str, str]:
    """Translate the fields of MSD's or nnU-Net v2's dataset.json; other objects are returned as they are.

    Labels and channels are taken, and the z-score for all channels that nnU-Net standardises as well. Neither program
    writes the spacing.

    Args:
        values: object of the file.
        path: path of the file, whose folder is the dataset's name if the file has none.
    Returns: the translated object, a line on what was taken, and why fields are missing; empty for others.
    """
    if isinstance(values.get("channel_names"), dict):
        program, names = "nnU-Net", values["channel_names"]
    elif isinstance(values.get("modality"), dict):
        program, names = "MSD", values["modality"]
    else:
        return values, "", ""
    own = {field: values[field] for field in OWN_FIELDS if field in values}
    if isinstance(own.get("modality"), dict):
        del own["modality"]
    channels = [names[key] for key in sorted(names, key=_number)]
    translated = {
        "name": path.absolute().parent.name,
        "channels": channels,
        **own,
        "labels": _by_name(values.get("labels")),
    }
    taken = f"labels and channels ({', '.join(map(str, channels))})"
    if "intensity" not in own and not OTHER_RULES & {str(name).lower() for name in channels}:
        translated["intensity"] = {"zscore": True}
        taken += "; intensities are scaled by the z-score"
    if unknown := [json.dumps(field) for field in values if field not in (*OWN_FIELDS, *OTHER_FIELDS)]:
        taken += f"; left out {', '.join(unknown)}, which neither {program} nor Rep3D has"
    return translated, f"taken from {program}: {taken}", f", which {program} does not write"


def _number(key: str) -> tuple[int, str]:
    return (int(key), "") if re.fullmatch(r"\d{1,9}", key) else (0, key)


def _by_name(labels: Any) -> Any:
    """Convert MSD's labels, names by value, to values by name; anything else is returned as it is."""
    if not isinstance(labels, dict) or not all(re.fullmatch(r"-?\d{1,9}", key) for key in labels):
        return labels
    values = defaultdict(list)
    for key, name in labels.items():
        values[name if isinstance(name, str) else json.dumps(name)].append(int(key))
    return {name: found[0] if len(found) == 1 else found for name, found in values.items()}
