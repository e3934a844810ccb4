#!/usr/bin/env bash
# Checks and measures one GPU in at most 8 minutes: the tests marked gpu, then the speed of Stable Diffusion 1.x and XL at full size with random
# weights, beside diffusers' pipelines, and one process against two. Output: gpu_check/report.md and report.json, or in the folder given. The exit
# status is 1 if a test failed or something could not be measured; the report says what.
set -euo pipefail
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-dev.txt
. scripts/environment.sh
. scripts/stopping.bash

OUT=${1:-gpu_check}
mkdir -p "$OUT"
"$PYTHON" -c 'import torch; raise SystemExit(None if torch.accelerator.is_available() else "error: PyTorch finds no GPU here")'
SECONDS=0
within() { timeout --foreground $((470 - SECONDS > 0 ? 470 - SECONDS : 1)) "$@"; }
measure() {    # NAME OPTIONS...: a benchmark, whose figures are kept in NAME.json
    local name=$1
    shift
    echo "$name: $*"
    within "$PYTHON" -m expansion.benchmark --dtype bfloat16 --rounds 1 --num_images_per_prompt 4 --output "$OUT/$name.json" "$@" > "$OUT/$name.txt" 2>&1 ||
        { echo "failed, see $OUT/$name.txt:"; tail -n 3 "$OUT/$name.txt"; }
}

rm -f "$OUT"/*.json
within "$PYTHON" -m pytest -m gpu -p no:cacheprovider tests/gpu 2>&1 | tee "$OUT/tests.txt" || true    # the report reads how they ended
METHODS="img2img text2img distdiff dreamda"
measure sd1 --full_size sd1 --resolution 512 --batch_sizes 16 --methods $METHODS
# Two processes at a time on one GPU, each with the same work as the one before them.
ALONE="--full_size sd1 --resolution 512 --batch_sizes 16 --methods img2img --no-rivals"
measure one $ALONE
measure two_a $ALONE & measure two_b $ALONE & wait
measure sdxl --full_size sdxl --resolution 1024 --batch_sizes 4 --methods $METHODS
"$PYTHON" -m expansion.benchmarks.gpu_report "$OUT"
