#!/usr/bin/env bash
#SBATCH --job-name=instseg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --requeue
# Trains on all GPUs of the nodes; a requeued job continues.
#
#   sbatch projects/clusters/slurm.sh --config-file FILE ... OUTPUT_DIR FOLDER
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export NODES=$SLURM_JOB_NUM_NODES HEAD=$head:$((20000 + SLURM_JOB_ID % 20000)) PROCESSES=${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}
exec srun --kill-on-bad-exit=0 "$SLURM_SUBMIT_DIR/projects/clusters/torchrun.sh" "$@"
