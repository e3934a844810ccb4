#!/usr/bin/env bash
# The comparisons of docs/results.md that need nothing from outside: MNIST few-shot and digits, 2, 5 and 10 images a class, five seeds.
# Cost: hours on two CPU cores; each study says how many before it begins. Output: results/<set><images a class>/, each with its tables; a second call only shows these again.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/environment.sh

for dataset in mnist-few-shot digits; do
    for shots in ${SHOTS:-2 5 10}; do
        "$PYTHON" -m expansion.study "$dataset" --config configs/studies/results.yaml --shots "$shots" --draw_per_seed --yes \
            --output_dir "results/$dataset-$shots" "$@"
    done
done
