"""The cases of an archive: the kind that fits, the files of each case, and what is missing."""

import re
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from typing import NamedTuple

from engine.archives.kinds import Kind
from engine.archives.meta import read_split, select_scanner
from engine.archives.schemas import complete_msd, complete_nnunet, name_explicit_files, pick_schema
from engine.archives.sources import Member, Source
from engine.archives.table import KINDS
from engine.archives.variants import Options, choose_variant
from engine.runtime.errors import InputError, raise_problems
from engine.runtime.wording import count_of, list_some

PARTS = {"Tr": "Tr", "Va": "Val", "Val": "Val", "Ts": "Ts"}  # of names in archives, and here
TITLES = {"Tr": "training", "Val": "validation", "Ts": "test"}

Key = tuple[str, str]  # part and id
Files = dict[Key, dict[str, Member]]  # of a case, by channel or class


class ArchiveCase(NamedTuple):
    """Case of an archive.

    Args:
        id: its id.
        part: Tr, Val or Ts.
        images: files of its image by what follows the id in their names, nothing for one channel.
        labels: its label map, by an empty name, or masks by the names of their classes; empty without labels.
    """

    id: str
    part: str
    images: dict[str, Member]
    labels: dict[str, Member]

    @property
    def key(self) -> str:
        """Part and id, which are unique together."""
        return f"{self.part}/{self.id}"


class Content(NamedTuple):
    """What is in an archive.

    Args:
        kind: its kind, completed by the flags and by the archive's own description.
        cases: complete cases, sorted.
        missing: one line for each deviation from what is expected.
        notes: lines to say.
        split: ids of the archive's own split, by train, val and test, if it has one.
    """

    kind: Kind
    cases: list[ArchiveCase]
    missing: list[str]
    notes: list[str]
    split: dict[str, list[str]]


def fitting_kinds(source: Source) -> list[str]:
    """Return the names of the kinds that an archive may be of."""
    return [name for name, kind in KINDS.items() if _fits(kind, source)]


def _fits(kind: Kind, source: Source) -> bool:
    if kind.schema and pick_schema(source, kind) is None:
        return False
    return all(_any_match(mark, source) for mark in kind.marks) and not any(_any_match(m, source) for m in kind.never)


def _any_match(pattern: str, source: Source) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(name) for name in source.members)


def find_kind(source: Source) -> str:
    """Find the kind of an archive by its files.

    Raises:
        InputError: none fits, or several.
    """
    fitting = fitting_kinds(source)
    if not fitting:
        raise InputError(f"--source: found {describe(source)}, expected an archive of {', '.join(KINDS)}; see --kind")
    if len(fitting) > 1:
        raise InputError(f"--kind: found none, expected {' or '.join(fitting)}: the files of {source.path} fit each")
    return fitting[0]


def describe(source: Source) -> str:
    """List what is at the top of a source, for messages."""
    top = sorted({name.partition("/")[0] + ("/" if "/" in name else "") for name in source.members})
    return f"{list_some(top) or 'nothing'} in {source.path}"


def find_content(source: Source, name: str, options: Options, with_test: bool) -> Content:
    """Find the cases of an archive.

    Args:
        source: the archive.
        name: name of its kind.
        options: flags of single kinds.
        with_test: whether to find test images, too.
    Raises:
        InputError: the archive has another layout, several files for one case, or a flag does not fit.
    """
    kind, inside, known = _settle_kind(source, name, options)
    images, labels = _collect(inside, kind, kind.images), _collect(inside, kind, kind.labels)
    _require_files(source, kind, images, labels)
    split: dict[str, list[str]] = {}
    if name == "totalsegmentator":
        kind = _complete_totalsegmentator(kind, images, labels, options.classes)
        split = read_split(source)
        known = {"Tr": frozenset(case for cases in split.values() for case in cases)}
    cases, incomplete = _pair(kind, images, labels)
    cases, notes = _leave_out(cases, known if kind.schema else {})
    incomplete = {key: lack for key, lack in incomplete.items() if with_test or key[0] != "Ts"}
    missing = _find_missing(source, kind, cases, incomplete, known)
    if options.scanner is not None:
        selected = select_scanner(source, [case.id for case in cases], options.scanner)
        notes.append(f"--scanner {options.scanner}: {len(selected)} of {len(cases)} cases")
        cases = [case for case in cases if case.id in selected]
    tests = _collect(inside, kind, kind.tests)
    cases += [ArchiveCase(case, "Ts", files, {}) for (_, case), files in sorted(tests.items())]
    cases = [case for case in cases if with_test or case.part != "Ts"]
    ids = {case.id for case in cases}
    return Content(kind, cases, missing, [*notes, *_list_doubts(kind, ids), *kind.notes], split)


def _settle_kind(source: Source, name: str, options: Options) -> tuple[Kind, Source, dict[str, frozenset[str]]]:
    """Complete a kind by the flags and by the archive's dataset.json.

    Returns: the kind, the files that its patterns apply to, and the ids of labelled cases by part, if they are known.
    """
    kind = choose_variant(name, options, source.members)
    if not kind.schema:
        return kind, source, {"Tr": kind.ids} if kind.ids else {}
    schema = pick_schema(source, kind)
    if schema is None:
        raise InputError(f"--source: found {describe(source)}, expected the layout of {kind.title}: {kind.layout}")
    if name == "msd":
        kind = complete_msd(kind, schema)
    if name == "nnunet":
        kind = complete_nnunet(kind, schema)
    if name == "nnunet" and isinstance(schema.values.get("dataset"), dict):
        ids = frozenset(schema.values["dataset"])
        return replace(kind, ids=ids), name_explicit_files(schema), {"Tr": ids}
    listed = {"Tr": schema.listed("training"), "Val": schema.listed("validation")}
    known = {part: frozenset(case for case in ids if _is_of_kind(kind, case)) for part, ids in listed.items()}
    return kind, schema.source, {part: ids for part, ids in known.items() if ids}


def _list_doubts(kind: Kind, ids: Container[str]) -> list[str]:
    """Return a line for each doubt about some of the cases."""
    present = [(doubt, [case for case in doubt.ids if case in ids]) for doubt in kind.doubts]
    return [f"{list_some(cases)}: {doubt.text}; kept" for doubt, cases in present if cases]


def _collect(source: Source, kind: Kind, patterns: Sequence[str]) -> Files:
    """Find the files that match the patterns of a kind, by case.

    Raises:
        InputError: one line per case with two files of the same sort.
    """
    found: Files = {}
    problems = []
    for pattern in patterns:
        compiled, earlier = re.compile(pattern), frozenset(found)
        for name, member in source.members.items():
            if (match := compiled.fullmatch(name)) is None:
                continue
            groups = match.groupdict()
            case = kind.case.format(groups["id"])
            key = PARTS[groups.get("part") or "Tr"], case
            if key in earlier or not _is_of_kind(kind, case):
                continue
            files = found.setdefault(key, {})
            sort = groups.get("channel") or groups.get("mask") or ""
            if sort in files:
                problems.append(f"--source: found {files[sort]} and {member}, expected one of them for {case}")
            files[sort] = member
    raise_problems(problems)
    return found


def _is_of_kind(kind: Kind, case: str) -> bool:
    """Check whether the number at the end of an id is one of the kind's."""
    number = re.search(r"\d+$", case)
    return kind.numbers is None or (number is not None and int(number[0]) in kind.numbers)


def _require_files(source: Source, kind: Kind, images: Files, labels: Files) -> None:
    """Raise an InputError if there are no images, or no labels."""
    if images and labels:
        return
    found = f"--source: found {describe(source)}, with {count_of(len(images), 'image')} of {kind.title} and "
    found += f"{len(labels)} of its label maps"
    others = [name for name in fitting_kinds(source) if KINDS[name].layout != kind.layout]
    hint = f"; its files are those of {' or '.join(others)}" if others else ""
    expected = kind.missing if kind.missing and not images else f"expected {kind.layout}"
    raise InputError(f"{found}; {expected}{hint}")


def _pair(kind: Kind, images: Files, labels: Files) -> tuple[list[ArchiveCase], dict[Key, str]]:
    """Pair images and labels. Images without a label are test cases if their ids are known not to be labelled.

    Returns: the complete cases, sorted, and what the others lack.
    """
    endings = set(kind.channels.values()) or {""}
    cases, incomplete = [], {}
    for part, case in sorted(images.keys() | labels.keys()):
        image, label = images.get((part, case), {}), labels.get((part, case), {})
        unlabelled = not label and bool(kind.ids) and case not in kind.ids
        if not image or endings - image.keys():
            incomplete[part, case] = f"no {'image' if not image else min(endings - image.keys())}"
        elif label or part == "Ts" or unlabelled:
            files = {ending: image[ending] for ending in sorted(endings)}
            cases.append(ArchiveCase(case, "Ts" if unlabelled else part, files, label))
        else:
            incomplete[part, case] = "no label"
    return cases, incomplete


def _leave_out(cases: list[ArchiveCase], listed: dict[str, frozenset[str]]) -> tuple[list[ArchiveCase], list[str]]:
    """Leave out the cases that the archive's own description does not list; return the others and a line."""
    kept: list[ArchiveCase] = []
    others: list[ArchiveCase] = []
    for case in cases:
        (kept if case.part not in listed or case.id in listed[case.part] else others).append(case)
    names = list_some([case.id for case in others])
    return kept, [f"left out {names}, which its dataset.json does not list"] if others else []


def _find_missing(
    source: Source,
    kind: Kind,
    cases: Sequence[ArchiveCase],
    incomplete: dict[Key, str],
    known: dict[str, frozenset[str]],
) -> list[str]:
    """Describe in one line per part the cases that are missing, or that are too many."""
    lines = []
    counts = Counter(case.part for case in cases)
    for part in ("Tr", "Val", "Ts"):
        ids = known.get(part, frozenset())
        expected = kind.expected.get(part, len(ids) or None)
        lacking = {case: reason for (of, case), reason in incomplete.items() if of == part and case in (ids or {case})}
        absent = ids - {case.id for case in cases if case.part == part} - lacking.keys()
        if expected in (None, counts[part]) and not lacking:
            continue
        named = sorted([*absent, *(f"{case} ({reason})" for case, reason in lacking.items())])
        found = f"{source.path}: found {count_of(counts[part], f'complete {TITLES[part]} case')}"
        lines.append(
            found
            + (f", expected {expected}" if expected is not None else "")
            + (f"; missing: {', '.join(named)}" if named else "")
        )
    return lines


def _complete_totalsegmentator(kind: Kind, images: Files, labels: Files, wanted: Sequence[str] | None) -> Kind:
    """Complete the kind of TotalSegmentator by its modality, and by the classes that are wanted or there.

    Raises:
        InputError: a class of which there is no mask.
    """
    there = sorted({name for masks in labels.values() for name in masks})
    if unknown := [name for name in wanted or () if name not in there]:
        raise InputError(f"--classes: found {', '.join(unknown)}, expected some of {', '.join(there)}")
    if len(set(wanted or ())) < len(wanted or ()):
        raise InputError(f"--classes: found {', '.join(wanted or ())}, expected different names")
    files = (str(file) for image in images.values() for file in image.values())
    modality = "MRI" if any(file.endswith("mri.nii.gz") for file in files) else "CT"
    classes = {name: value for value, name in enumerate(["background", *(wanted or there)])}
    order = f"classes in the order of their values: {', '.join(classes)}; a later one overwrites an earlier one"
    title = f"{kind.title}, {modality}"
    return replace(kind, title=title, modality=modality, classes=classes, notes=(*kind.notes, order))
