"""The kinds of archives that are known."""

from dataclasses import replace
from typing import Any

from engine.archives.kinds import Doubt, Kind, MsdTask

NII = r"\.nii(?:\.gz)?"
UNKNOWN_SPLIT = "which cases the paper trained on, validated on and tested on is not public"
MSD_TASKS = {  # by the beginning of the ids
    "BRATS": MsdTask(484),
    "la": MsdTask(20),
    "liver": MsdTask(131),
    "hippocampus": MsdTask(260),
    "prostate": MsdTask(32),
    "lung": MsdTask(63),
    "pancreas": MsdTask(
        281,
        "pancreas",
        "splits/msd_pancreas.json",
        (UNKNOWN_SPLIT, "FLARE22's 50 labelled CTs are among these cases: do not train on one and test on the other"),
    ),
    "hepaticvessel": MsdTask(303, "hepatic", "splits/msd_hepaticvessel.json", (UNKNOWN_SPLIT,)),
    "spleen": MsdTask(41),
    "colon": MsdTask(126),
}


def _ids(template: str, *ranges: range) -> frozenset[str]:
    return frozenset(template.format(number) for numbers in ranges for number in numbers)


def _names(text: str) -> dict[str, int]:
    """Number names, the background first."""
    return {name: value for value, name in enumerate(["background", *text.split(", ")])}


AMOS = Kind(
    title="AMOS22",
    page="https://zenodo.org/records/7262581 (amos22.zip)",
    licence="sources differ, read https://zenodo.org/records/7262581 and https://amos22.grand-challenge.org",
    layout="amos22/ with dataset.json, imagesTr, labelsTr, imagesVa, labelsVa and files amos_dddd.nii.gz",
    marks=(r"(?:.*/)?imagesTr/amos_\d{4}\.nii\.gz",),
    schema="labels",
    images=(r"images(?P<part>Tr|Va|Ts)/(?P<id>amos_\d{4})\.nii\.gz",),
    labels=(r"labels(?P<part>Tr|Va|Ts)/(?P<id>amos_\d{4})\.nii\.gz",),
    align=True,
)
KITS_IMAGING = (
    "imaging is downloaded separately: take images/case_ddddd.nii.gz of "
    "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging, and put the folder images into that of --source"
)
KITS = Kind(
    title="KiTS",
    page="https://github.com/neheller, and KiTS-Challenge-Imaging on Hugging Face for the images",
    licence="CC BY-NC-SA 4.0",
    layout="case_ddddd/ with imaging.nii.gz (or images/case_ddddd.nii.gz) and segmentation.nii.gz",
    images=(r"(?:.*/)?(?P<id>case_\d{5})/imaging\.nii\.gz", r"(?:.*/)?images/(?P<id>case_\d{5})\.nii\.gz"),
    labels=(r"(?:.*/)?(?P<id>case_\d{5})/segmentation\.nii\.gz",),
    modality="CT",
    paper="kits",
    regions={"kidney and masses": ["kidney", "tumor", "cyst"], "masses": ["tumor", "cyst"]},
    missing=KITS_IMAGING,
    notes=("the paper's mean is over kidney, tumor and cyst, the challenge's over its regions: not for one table",),
    doubts=(
        Doubt(("case_00160",), "512 x 796 voxels in plane"),
        Doubt(("case_00021",), "38 slices only"),
    ),
)
FIRST_RELEASE = (  # of KiTS19, corrected later
    Doubt(
        tuple(f"case_{number:05d}" for number in (15, 22, 25, 61, 117)),
        "in the release of March 2019 these had a second contrast phase",
    ),
    Doubt(
        tuple(f"case_{number:05d}" for number in (15, 23, 37, 68, 125, 133)),
        "in early releases some of these had wrong labels, and nnU-Net excluded or replaced them",
    ),
)
TOLERANCES = {"kidney and masses": 1.03308, "masses": 1.13288, "tumor": 1.14982}  # HEC_SD_TOLERANCES_MM of both codes
KITS_FOLDER = r"(?:.*/)?case_\d{5}"
KITS21_LABELS = r"(?:.*/)?(?P<id>case_\d{{5}})/aggregated_{}_seg\.nii\.gz"
OF_KITS23 = (r"(?:.*/)?kits23\.json", rf"{KITS_FOLDER}/instances/.*", r"(?:.*/)?case_00[4-5]\d\d/.*")
BRATS = Kind(
    title="BraTS",
    page="https://www.synapse.org",
    licence="terms of the challenge on Synapse",
    layout="<case>/ with <case>_t1.nii.gz, _t1ce, _t2, _flair and _seg (to 2021) or <case>-t1n.nii.gz, -t1c, -t2w, ...",
    marks=(rf".*(?:_t1ce|-t1c){NII}", rf".*(?:_flair|-t2f){NII}"),
    images=(rf"(?:.*/)?(?P<id>[^/]+)(?P<channel>-t1n|-t1c|-t2w|-t2f){NII}",),
    labels=(rf"(?:.*/)?(?P<id>[^/]+)-seg{NII}",),
    modality="MRI",
    channels={"T1": "-t1n", "T1 contrast": "-t1c", "T2": "-t2w", "FLAIR": "-t2f"},
    options=("year",),
    notes=("label maps keep their values, so that predictions have those of the challenge",),
)
BRATS_REGIONS = {
    "whole tumor": ["necrotic core", "edema", "enhancing tumor"],
    "tumor core": ["necrotic core", "enhancing tumor"],
}
BRATS_YEARS: dict[str, dict[str, Any]] = {
    "2021": {
        "title": "BraTS, 2018 to 2021",
        "images": (rf"(?:.*/)?(?P<id>[^/]+)(?P<channel>_t1|_t1ce|_t2|_flair){NII}",),
        "labels": (rf"(?:.*/)?(?P<id>[^/]+)_seg{NII}",),
        "channels": {"T1": "_t1", "T1 contrast": "_t1ce", "T2": "_t2", "FLAIR": "_flair"},
        "classes": {"background": 0, "necrotic core": 1, "edema": 2, "enhancing tumor": 4},
        "regions": BRATS_REGIONS,
    },
    "2023": {
        "title": "BraTS-GLI 2023",
        "classes": {"background": 0, "necrotic core": 1, "edema": 2, "enhancing tumor": 3},
        "regions": BRATS_REGIONS,
    },
    "2024": {
        "title": "BraTS-GLI 2024",
        "classes": {"background": 0, "necrotic core": 1, "edema": 2, "enhancing tumor": 3, "resection cavity": 4},
        "regions": BRATS_REGIONS,
    },
}
KINDS = {
    "amos": replace(
        AMOS,
        title="AMOS22, CT",
        modality="CT",
        paper="amos",
        numbers=range(500),
        expected={"Tr": 200, "Val": 100},
        notes=(
            "the paper's 200 CTs are most probably those of imagesTr; its split is not public, and the committed one "
            "has the test cases of its predecessor, 3D UX-Net",
        ),
        split="splits/amos_ct_3duxnet.json",
    ),
    "amos_mri": replace(
        AMOS,
        title="AMOS22, MRI",
        modality="MRI",
        paper="amos_mri",
        numbers=range(500, 10000),
        expected={"Tr": 40, "Val": 20},
        dropped=(14, 15),
        options=("scanner",),
        split="splits/amos_mri.json",
        notes=(
            "the paper's 33 MRIs are most probably those of imagesTr from Prisma scanners (--scanner Prisma); its "
            "split is not public",
            "the paper's repository scales intensities from 0 to 1000 to 0..1, AMOS's own paper by the z-score",
        ),
    ),
    "kits19": replace(
        KITS,
        title="KiTS19",
        marks=(rf"{KITS_FOLDER}/segmentation\.nii\.gz",),
        never=(*OF_KITS23, rf"{KITS_FOLDER}/aggregated_.*"),
        ids=_ids("case_{:05d}", range(210)),
        classes={"background": 0, "kidney": 1, "tumor": 2},
        regions={"kidney and masses": ["kidney", "tumor"]},
        notes=(
            "cysts have no label of their own, unlike in KiTS21, whose name the paper gives for 210 CTs",
            *KITS.notes,
        ),
        doubts=(*KITS.doubts, *FIRST_RELEASE),
        split="splits/kits19_210.json",
    ),
    "kits21": replace(
        KITS,
        title="KiTS21",
        layout="case_ddddd/ with imaging.nii.gz (or images/case_ddddd.nii.gz) and aggregated_MAJ_seg.nii.gz",
        marks=(rf"{KITS_FOLDER}/aggregated_.*",),
        labels=(KITS21_LABELS.format("MAJ"),),
        ids=_ids("case_{:05d}", range(300)),
        tolerances=TOLERANCES,
        options=("cases", "labels"),
        notes=(
            "the paper's 210 CTs under this name are most probably cases 00000 to 00209 (--cases 210); its split is "
            "not public",
            *KITS.notes,
        ),
        split="splits/kits21.json",
    ),
    "kits23": replace(
        KITS,
        title="KiTS23",
        marks=(rf"{KITS_FOLDER}/segmentation\.nii\.gz",),
        never=(r"(?:.*/)?kits\.json", rf"{KITS_FOLDER}/aggregated_.*"),
        ids=_ids("case_{:05d}", range(300), range(400, 589)),
        tolerances=TOLERANCES,
    ),
    "msd": Kind(
        title="Medical Segmentation Decathlon",
        page="http://medicaldecathlon.com",
        licence="CC BY-SA 4.0",
        layout="TaskNN_Name/ with dataset.json, imagesTr, labelsTr, imagesTs",
        schema="modality",
        never=AMOS.marks,
        images=(rf"images(?P<part>Tr|Ts)/(?P<id>[^/]+?){NII}",),
        labels=(rf"labels(?P<part>Tr|Ts)/(?P<id>[^/]+?){NII}",),
    ),
    "nnunet": Kind(
        title="nnU-Net v2 dataset",
        page="https://github.com/MIC-DKFZ/nnUNet",
        licence="that of the data, which nnU-Net's format does not state",
        layout="DatasetNNN_Name/ with dataset.json, imagesTr/<id>_0000.nii.gz, labelsTr/<id>.nii.gz",
        schema="channel_names",
        images=(rf"images(?P<part>Tr|Ts)/(?P<id>[^/]+)(?P<channel>_\d{{4}}){NII}",),
        labels=(rf"labels(?P<part>Tr|Ts)/(?P<id>[^/]+?){NII}",),
    ),
    "btcv": Kind(
        title="BTCV, abdomen",
        page="https://www.synapse.org/Synapse:syn3193805 (RawData.zip)",
        licence="terms of the challenge on Synapse",
        layout="Training/ with img/img0001.nii.gz, label/label0001.nii.gz",
        marks=(rf"(?:.*/)?img/img\d{{4}}{NII}", rf"(?:.*/)?label/label\d{{4}}{NII}"),
        images=(rf"(?!(?:.*/)?Testing/)(?:.*/)?img/img(?P<id>\d{{4}}){NII}",),
        labels=(rf"(?:.*/)?label/label(?P<id>\d{{4}}){NII}",),
        tests=(rf"(?:.*/)?Testing/img/img(?P<id>\d{{4}}){NII}",),
        case="img{}",
        ids=_ids("img{:04d}", range(1, 11), range(21, 41)),
        modality="CT",
        classes=_names(
            "spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta, inferior vena cava, "
            "portal and splenic veins, pancreas, right adrenal gland, left adrenal gland"
        ),
        notes=(
            "values differ from AMOS's from 10 on: 10 is a vein here, 11 the pancreas",
            "published splits of the 30 labelled cases differ: 24 and 6 (SwinUNETR), 18 and 12, 8 organs (nnFormer)",
        ),
    ),
    "flare22": Kind(
        title="FLARE22, labelled cases",
        page="https://flare22.grand-challenge.org",
        licence="terms of the challenge, https://flare22.grand-challenge.org",
        layout="FLARE22_LabeledCase50/ with images and labels (folders or zips), FLARE22_Tr_0001_0000.nii.gz, ...",
        marks=(r"(?:.*/)?FLARE22_Tr_\d{4}_0000\.nii\.gz",),
        images=(r"(?:.*/)?(?P<id>FLARE22_Tr_\d{4})_0000\.nii\.gz",),
        labels=(r"(?:.*/)?(?P<id>FLARE22_Tr_\d{4})\.nii\.gz",),
        tests=(r"(?:.*/)?(?P<id>FLARETs_\d{4})_0000\.nii\.gz",),
        ids=_ids("FLARE22_Tr_{:04d}", range(1, 51)),
        modality="CT",
        classes=_names(
            "liver, right kidney, spleen, pancreas, aorta, inferior vena cava, right adrenal gland, "
            "left adrenal gland, gallbladder, esophagus, stomach, duodenum, left kidney"
        ),
        notes=("the labelled cases are among those of MSD Pancreas: do not train on one and test on the other",),
    ),
    "totalsegmentator": Kind(
        title="TotalSegmentator v2",
        page="https://zenodo.org/records/10047292 (CT), https://zenodo.org/records/14710732 (MRI)",
        licence="CC BY 4.0",
        layout="s0000/ with ct.nii.gz or mri.nii.gz and segmentations/<class>.nii.gz, and meta.csv",
        marks=(r"(?:.*/)?s\d{4}/(?:ct|mri)\.nii\.gz", r"(?:.*/)?s\d{4}/segmentations/.+\.nii\.gz"),
        images=(r"(?:.*/)?(?P<id>s\d{4})/(?:ct|mri)\.nii\.gz",),
        labels=(r"(?:.*/)?(?P<id>s\d{4})/segmentations/(?P<mask>[^/]+)\.nii\.gz",),
        options=("classes",),
        doubts=(
            Doubt(
                ("s0184", "s0224", "s0830", "s0864"),
                "of the CTs: some intensities are odd (issue 193 of its repository)",
            ),
        ),
    ),
    "brats": BRATS,
}
