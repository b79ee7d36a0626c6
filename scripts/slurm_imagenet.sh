#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Attack ImageNet's whole validation set, 3,125 clients with 16 images each, on several nodes: in waves of four clients a
# rank, so that memory holds one wave.
#
#   sbatch scripts/slurm_imagenet.sh /path/to/imagenet/val /path/to/sam_vit_h_4b8939.pth /path/to/output
#
# Lightning reads the layout from SLURM: --nodes must equal num_nodes, --ntasks-per-node must equal devices.
#SBATCH --job-name=recon
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
# 90 seconds before the limit Lightning saves a checkpoint and puts the job back into the queue.
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
set -euo pipefail

if [ $# -ne 3 ]; then
    echo "usage: sbatch $0 DATA_ROOT SAM_CHECKPOINT OUTPUT" >&2
    exit 2
fi
data_root=$1 sam_checkpoint=$2 output=$3

# Activate the environment here if your shell does not:
# source .venv/bin/activate

# A job that was put back into the queue, or submitted again, goes on with the wave in which it was.
resume=()
if compgen -G "$output/waves/*/wave.json" >/dev/null; then
    resume=(--ckpt_path last)
elif [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    resume=(--overwrite) # stopped within the first wave
fi

srun --kill-on-bad-exit=1 recon fit \
    --config imagenet.yaml \
    --data.root "$data_root" \
    --data.clients "${CLIENTS:-3125}" \
    --data.clients_at_once $((SLURM_NNODES * SLURM_NTASKS_PER_NODE * 4)) \
    --data.masks lightning_recon.data.SamMasks \
    --data.masks.checkpoint "$sam_checkpoint" \
    --trainer.accelerator gpu \
    --trainer.strategy ddp \
    --trainer.num_nodes "$SLURM_NNODES" \
    --trainer.devices "$SLURM_NTASKS_PER_NODE" \
    --trainer.default_root_dir "$output" \
    "${resume[@]}"
