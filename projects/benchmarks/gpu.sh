#!/usr/bin/env bash
# Measures everything on a CUDA GPU in less than ten minutes and writes OUTPUT/gpu.md.
#
#   projects/benchmarks/gpu.sh [--dry-run] [OUTPUT]      OUTPUT: a folder, default output/gpu
#
# A step that fails or takes too long is named in the report, and the next one starts. --dry-run: tiny sizes on the CPU.
# PYTHON: default .venv/bin/python, which `make setup` installs, with the operators built for the GPU.
# INSTSEG_NO_INSTALL=1: install and build nothing, for machines without network; instseg_d2/_C.abi3.so is there already.
set -uo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
dry_run=
if [ "${1:-}" = --dry-run ]; then
	dry_run=--dry-run
	shift
fi
output=${1:-output/gpu}
python=${PYTHON:-.venv/bin/python}
seconds_in_all=570
mkdir -p "$output/logs"
measured=$output/logs/measured.md
steps=$output/logs/steps.md
: >"$measured"
printf '## Steps\n\n| step | outcome | seconds |\n|---|---|---|\n' >"$steps"
failed=0

# step TITLE LIMIT COMMAND...: runs the command for at most LIMIT seconds and writes the report so far.
step() {
	local title=$1 limit=$2 left=$((seconds_in_all - SECONDS)) start=$SECONDS status=0 outcome
	local log=$output/logs/${title// /_}.log
	shift 2
	if ((left < 10)); then
		status=1
		outcome="not run, no time left"
	else
		echo "$title ..."
		timeout -k 10 $((limit < left ? limit : left)) "$@" >"$log" 2>&1 || status=$?
		case $status in
		0) outcome=done ;;
		124 | 137) outcome="stopped, out of time" ;;
		*) outcome="failed, see $log" ;;
		esac
	fi
	((status == 0)) || failed=$((failed + 1))
	printf '| %s | %s | %s |\n' "$title" "$outcome" $((SECONDS - start)) >>"$steps"
	cat "$measured" "$steps" >"$output/gpu.md"
}

measure() {
	local title=$1 limit=$2
	shift 2
	step "$title" "$limit" "$python" -m projects.benchmarks.gpu --output "$measured" $dry_run "$@"
}

if [ -n "$dry_run" ]; then
	measure "dry run" 300 machine operators stages training learning compiled
else
	if [ -z "${INSTSEG_NO_INSTALL:-}" ]; then
		step "set-up and build" 300 make setup
	fi
	if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
		echo "$python finds no GPU; --dry-run tries this script on a CPU." >&2
		exit 1
	fi
	measure machine 60 machine
	step "CUDA tests" 120 "$python" -m pytest -k "(cuda or gpu) and not test_gpu" tests
	measure operators 60 operators
	measure "stages of inference" 120 stages
	measure "training step" 90 training
	measure "short training" 60 learning
	if command -v compute-sanitizer >/dev/null; then
		step compute-sanitizer 90 compute-sanitizer --error-exitcode 9 \
			"$python" -m pytest tests/ops -k "cuda_equals_cpu and float32"
	else
		echo "| compute-sanitizer | not installed | |" >>"$steps"
	fi
	measure "exported model" 90 exported
	measure "torch.compile" 180 compiled
fi
echo "Report: $output/gpu.md, steps that failed: $failed"
exit $((failed > 0))
