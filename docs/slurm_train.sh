#!/bin/bash
# Train on the four GPUs of one node, or of several nodes, by SLURM:
#
#     sbatch docs/slurm_train.sh
#     sbatch --nodes=2 docs/slurm_train.sh
#
# Start it in the repository's root. All nodes must see the root, DATA and OUTPUT. Each iteration trains on --batch_size
# cases per GPU. A run resumes only with the same number of cases per iteration: after a change of nodes or GPUs, change
# --batch_size so that the product of the two stays the same.
#
#SBATCH --job-name=rep3d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1          # one torchrun per node, which starts one process per GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16           # per GPU one process and its --num_workers, and some more
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --requeue                    # after a node's failure or a preemption
#SBATCH --open-mode=append           # one log, however often the job is started
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@120          # two minutes before the time is up: see trap

set -euo pipefail
DATA=${DATA:-/data/amos}
OUTPUT=${OUTPUT:-runs/amos}
CACHE=${CACHE:-$OUTPUT/cache}        # a fast disk that all nodes see

# A job at the end of its time is queued again. That sends SIGTERM to the processes, which save after the current step. If
# SLURM's KillWait leaves them less time than a step takes, what came after the last validation is repeated.
trap 'echo "time is up: queued again"; scontrol requeue "$SLURM_JOB_ID"' USR1

resume=()
if [[ -e $OUTPUT/last_checkpoint.pth || -e $OUTPUT/previous_checkpoint.pth ]]; then
    resume=(--resume)
fi

# The processes meet at the first node; the job's number separates two jobs there. On a single machine without SLURM,
# `torchrun --standalone --nproc_per_node 4 main_train.py ...` is enough.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" .venv/bin/torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node 4 \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_endpoint "$first_node:$((20000 + SLURM_JOB_ID % 10000))" \
    main_train.py --root "$DATA" --output "$OUTPUT" --dataset amos --network REP3D \
    --batch_size 1 --sync_batchnorm --cache_dir "$CACHE" --num_workers 3 ${resume[@]+"${resume[@]}"} &
wait $!  # srun runs in the background, because the trap would have to wait for it in the foreground
