#!/usr/bin/env bash
# The wheel as its user meets it: built from the sdist, installed without the checkout, used in an empty folder.
# PYTHON (default .venv/bin/python) has the requirements; the operators are left out, which saves their compilation.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
fail() {
	echo "wheel.sh: $*" >&2
	exit 1
}

INSTSEG_NO_EXT=1 "$python" -m build --no-isolation --outdir "$work/dist" . >"$work/log" 2>&1 || fail "$(cat "$work/log")"
tar -tzf "$work"/dist/*.tar.gz | cut -d/ -f2- | sort >"$work/packed"
find csrc configs projects -type f ! -name '*.pyc' ! -name '*.so' | sort >"$work/sources"
missing=$(comm -13 "$work/packed" "$work/sources")
[ -z "$missing" ] || fail "the sdist lacks $missing"

# A new environment that shares the installed packages, so that PyTorch is not installed again.
"$python" -m venv --without-pip "$work/venv"
"$python" -c "import sys; print(*(path for path in sys.path if 'site-packages' in path), sep='\n')" \
	>"$("$work/venv/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth"
"$python" -m pip --python "$work/venv/bin/python" install -q --no-deps --no-index --disable-pip-version-check "$work"/dist/*.whl
export PATH="$work/venv/bin:$PATH" OMP_NUM_THREADS=1
mkdir "$work/empty"
cd "$work/empty"
[[ $(python -c "import importlib.util as u; print(u.find_spec('instseg_d2').origin)") == "$work/venv/"* ]] || fail "another instseg_d2 is found"
[[ $(command -v instseg) == "$work/venv/bin/instseg" ]] || fail "another instseg is found: $(command -v instseg)"

python -c "
from instseg_d2.data import make_shapes
make_shapes('shapes', 'train', 6, 0)"
data=(shapes/train.json shapes/images)
instseg doctor
instseg check "${data[@]}"
instseg zoo --copy quick/blendmask_shapes --to mine.yaml
# Two processes: each imports the package anew.
instseg train --config quick/blendmask_shapes --train-json "${data[0]}" --train-images "${data[1]}" --num-gpus 0 \
	--num-processes 2 SOLVER.MAX_ITER 5 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 OUTPUT_DIR run
instseg evaluate --weights run/model_final.pth --json "${data[0]}" --images "${data[1]}" --config mine.yaml --num-gpus 0
instseg predict --weights run/model_final.pth --input "${data[1]}" --output pictures --max-images 2
for file in run/model_final.pth output/evaluation/inference/results.json pictures/results.json pictures/index.html; do
	[ -s "$file" ] || fail "$file was not written"
done
echo "The wheel works."
