"""Rep3D in nnU-Net v2; installed as ``rep3d.nnunet``."""
