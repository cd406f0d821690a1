"""Plans as nnU-Net writes them, cut down to what the integration reads, and a small network for them."""

SMALL = {"depths": [1, 1, 1, 1], "feat_size": [4, 4, 4, 4], "kernel_size": 5}
STOCK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {"n_stages": 4, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]},
    "_kw_requires_import": ["conv_op"],
}
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "left": 1, "right": 2}, "file_ending": ".nii.gz"}


def configuration(patch, **more):
    data = f"nnUNetPlans_{len(patch)}d"
    return {"data_identifier": data, "batch_size": 2, "patch_size": patch, "architecture": STOCK, **more}


def make_plans(**configurations):
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "configurations": configurations,
        "label_manager": "LabelManager",
    }
