"""Rep3D in nnU-Net v2; installed as ``rep3d.nnunet``. Only the folder ``TRAINERS`` needs nnU-Net itself."""

from pathlib import Path

TRAINERS = Path(__file__).parent / "trainers"  # for nnU-Net's environment variable nnUNet_extTrainer
