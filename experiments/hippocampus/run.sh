#!/usr/bin/env bash
# Train a small REP3D on MSD hippocampus on two CPU cores, predict the validation cases, plot curves and masks.
# Usage: bash experiments/hippocampus/run.sh <dataset folder> <output folder>
set -euo pipefail
root=${1:-../shared/data/msd_hippocampus}
output=${2:-runs/hippocampus}
python=${PYTHON:-.venv/bin/python}

time "$python" main_train.py @recipes/rep3d_hippocampus.args --root "$root" --output "$output"
time "$python" test_seg.py --root "$root" --output "$output/predictions" \
    --trained_weights "$output/best_metric_model.pth" --amp off --gpu cpu --preview
"$python" -m tools.plot_run --run "$output" --output "$output"
