#!/usr/bin/env bash
# Train for a few iterations on one real, thin, anisotropic CT with the amos pipeline, predict it, and compare grids.
# It shows that the pipeline runs and that the prediction is on the grid of the image. The same case is used for training
# and validation, so the Dice is no measure of accuracy.
# Usage: bash experiments/ct_spleen/run.sh <dataset folder> <output folder>
set -euo pipefail
root=${1:-../shared/data/ct_spleen}
output=${2:-runs/ct_spleen}
python=${PYTHON:-.venv/bin/python}

"$python" main_train.py --root "$root" --output "$output" --dataset amos --network REP3D --feat_size 8 16 32 64 \
    --kernel_size 21 --roi_size 64 64 48 --lr 2e-3 --max_iter 60 --eval_step 60 --cache_rate 1 --gpu cpu
"$python" test_seg.py --root "$root" --output "$output/predictions" \
    --trained_weights "$output/best_metric_model.pth" --gpu cpu --preview
"$python" - "$root/imagesVal/spleen_2.nii.gz" "$output/predictions/spleen_2_seg.nii.gz" <<'PYTHON'
import sys

import nibabel as nib
import numpy as np

for path in sys.argv[1:]:
    image = nib.load(path)
    print(path.rsplit("/", 1)[-1], image.shape, image.get_data_dtype(), *np.round(image.affine[:3].ravel(), 3))
PYTHON
