#!/usr/bin/env bash
# Trains on the GPUs of one machine, or of several, with this command on each; a job that loses a process continues from
# its last checkpoint.
#
#   projects/clusters/torchrun.sh --config-file FILE ... OUTPUT_DIR FOLDER        FOLDER: the same for all machines
#
# NODES (default 1), PROCESSES on each (default: its GPUs, or 1), HEAD (HOST:PORT of one of them), RESTARTS (default 3).
set -euo pipefail
processes=${PROCESSES:-gpu}
if [ -z "${PROCESSES:-}" ] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
	processes=1
fi
# Otherwise processes that start again find the addresses of those before them in the store, and wait for these in vain.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec python -m torch.distributed.run --nnodes "${NODES:-1}" --nproc-per-node "$processes" \
	--rdzv-backend c10d --rdzv-endpoint "${HEAD:-localhost:0}" --max-restarts "${RESTARTS:-3}" \
	-m instseg_d2 train --resume "$@"
