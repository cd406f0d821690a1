#!/bin/bash
# Training on the four GPUs of a node, or of several nodes, by SLURM:
#
#     sbatch docs/slurm_train.sh
#     sbatch --nodes=2 docs/slurm_train.sh
#
# Started from the repository's root, which all the nodes have to see, as they have to see DATA and OUTPUT. An iteration
# trains on --batch_size cases on every GPU. A run goes on only with as many cases an iteration in all: after a change
# of nodes or GPUs change --batch_size so that the product stays.
#
#SBATCH --job-name=rep3d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1          # one torchrun a node, which starts a process a GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16           # a process and its --num_workers for each GPU, and some to spare
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --requeue                    # after a node's failure or a preemption
#SBATCH --open-mode=append           # one log, however often the job is started
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@120          # two minutes before the time is up: see trap

set -euo pipefail
DATA=${DATA:-/data/amos}
OUTPUT=${OUTPUT:-runs/amos}
CACHE=${CACHE:-$OUTPUT/cache}        # a fast disk that all the nodes see

# A job at the end of its time is queued once more. That sends SIGTERM to the processes, which save after the step they
# are in; where SLURM's KillWait leaves them less time than a step takes, what came after the last validation is repeated.
trap 'echo "time is up: queued again"; scontrol requeue "$SLURM_JOB_ID"' USR1

resume=()
if [[ -e $OUTPUT/last_checkpoint.pth || -e $OUTPUT/previous_checkpoint.pth ]]; then
    resume=(--resume)
fi

# The processes meet at the first node; the job's number keeps two jobs there apart. On a single machine without SLURM
# `torchrun --standalone --nproc_per_node 4 main_train.py ...` is all it takes.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
srun --cpus-per-task "$SLURM_CPUS_PER_TASK" .venv/bin/torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node 4 \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" \
    --rdzv_endpoint "$first_node:$((20000 + SLURM_JOB_ID % 10000))" \
    main_train.py --root "$DATA" --output "$OUTPUT" --dataset amos --network REP3D \
    --batch_size 1 --sync_batchnorm --cache_dir "$CACHE" --num_workers 3 ${resume[@]+"${resume[@]}"} &
wait $!  # not srun in the foreground, behind which the trap would have to wait
