#!/usr/bin/env bash
# Train a small REP3D on MSD hippocampus on two CPU cores, predict the validation cases, plot curves and masks.
# Usage: bash experiments/hippocampus/run.sh <dataset folder> <output folder>
set -euo pipefail
root=${1:-../shared/data/msd_hippocampus}
output=${2:-runs/hippocampus}
python=${PYTHON:-.venv/bin/python}
here=$(dirname "$0")

time "$python" main_train.py --root "$root" --output "$output" --dataset "$here/dataset.json" \
    --network REP3D --feat_size 16 32 64 128 --kernel_size 21 --roi_size 48 64 48 --batch_size 2 --crop_sample 1 \
    --max_iter 400 --eval_step 100 --lr 1e-3 --cache_rate 1 --amp off --gpu cpu
time "$python" test_seg.py --root "$root" --output "$output/predictions" \
    --trained_weights "$output/best_metric_model.pth" --amp off --gpu cpu --preview
"$python" -m tools.plot_run --run "$output" --output "$output"
