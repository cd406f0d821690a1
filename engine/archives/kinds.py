"""Kinds of archives: for each the names of its files, its classes, and what is known of its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Labels = Mapping[str, int | list[int]]


class Doubt(NamedTuple):
    """Cases about which something is known that a user may want to look at.

    Args:
        ids: ids of the cases.
        text: what is known.
    """

    ids: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Kind:
    """What there is to know of one public archive, or of one format of datasets.

    Patterns match names of files in the archive, as regular expressions, with these groups: "id"; "part" (Tr, Va, Val
    or Ts; Tr without it); "channel", the ending of one of several images of a case; "mask", the class of one of its
    masks. Of several patterns, a later one is for cases that the earlier ones do not find.

    Args:
        title: name of the dataset, for messages.
        page: where it comes from.
        licence: its licence, or where to read it.
        layout: the layout of its files, in words, for messages.
        marks: patterns that all have to match some file; otherwise the archive is not of this kind.
        never: patterns of which none may match.
        schema: field that the archive's dataset.json must have, an object; "" if there is no such file. Patterns then
            apply to names below its folder.
        images: patterns of images.
        labels: patterns of label maps, or of masks.
        tests: patterns of images without labels that are not in images.
        case: template that makes an id of what the group "id" matches.
        numbers: the numbers at the end of ids that belong to this kind; None for all.
        ids: all ids of labelled cases, if they are known beforehand.
        expected: number of labelled cases by part; empty if it is not known.
        modality: "CT", "MRI", or "" if the archive tells.
        paper: entry of ``DATASETS`` with spacing and intensities, or "" if the paper has none.
        classes: names of the classes and their values; None for those of the paper's entry or of dataset.json.
        regions: unions of classes.
        tolerances: tolerances of the challenge's surface Dice, mm, by class or region.
        channels: names of the channels, and for several images per case what follows the id in their names.
        dropped: values of label maps that become background.
        align: whether labels whose affine differs are rewritten with the affine of their image.
        options: flags of the command that this kind has.
        missing: what to do if there is no image at all, in words.
        notes: what differs from the paper, or has to be said for another reason, one line each.
        doubts: what is known of single cases; none of them is left out.
        split: the committed file of splits, or "".
        name: name in the description of the dataset; the title without it.
    """

    title: str
    page: str
    licence: str
    layout: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    marks: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    schema: str = ""
    tests: tuple[str, ...] = ()
    case: str = "{}"
    numbers: range | None = None
    ids: frozenset[str] = frozenset()
    expected: Mapping[str, int] = field(default_factory=dict)
    modality: str = ""
    paper: str = ""
    classes: Labels | None = None
    regions: Mapping[str, list[str]] = field(default_factory=dict)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    channels: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()
    align: bool = False
    options: tuple[str, ...] = ()
    missing: str = ""
    notes: tuple[str, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    split: str = ""
    name: str = ""


class MsdTask(NamedTuple):
    """Task of the Medical Segmentation Decathlon.

    Args:
        training: number of labelled cases.
        paper: entry of ``DATASETS``, or "".
        split: the committed file of splits, or "".
        notes: lines to say.
    """

    training: int
    paper: str = ""
    split: str = ""
    notes: tuple[str, ...] = ()
