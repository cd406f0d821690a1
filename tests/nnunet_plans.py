"""Plans as nnU-Net writes them, cut down to what integrations/nnunet reads, and a small network for them."""

SMALL = {"depths": [1, 1, 1, 1], "feat_size": [4, 4, 4, 4], "kernel_size": 5}
PATCH = [16, 32, 16]
DATASET = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "left": 1, "right": 2}, "file_ending": ".nii.gz"}
STOCK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {"n_stages": 4, "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]},
    "_kw_requires_import": ["conv_op"],
}
OURS = {
    "network_class_name": "rep3d.nnunet.adapter.NetworkFromPlans",
    "arch_kwargs": {"network": "REP3D", "patch_size": PATCH, **SMALL},
    "_kw_requires_import": [],
}


def make_configuration(patch, **more):
    data = f"nnUNetPlans_{len(patch)}d"
    common = {"data_identifier": data, "batch_size": 2, "batch_dice": False}
    return {**common, "patch_size": patch, "architecture": STOCK, **more}


def make_plans(**configurations):
    return {
        "dataset_name": "Dataset004_Hippocampus",
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": configurations,
    }
