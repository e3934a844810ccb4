#!/usr/bin/env bash
# Does generating images help? All of it on one folder of photos; options as of python -m expansion.study.
#   bash scripts/single_exp.sh path/to/photos
# Without a folder: the papers' recipe on DATASET, with MODEL LR METHODS GPUS EXPAND_NUM DREAMDA_NUM GUIDE from the environment.
# Cost: minutes with small images on a CPU, hours with photos on a GPU; it says so before it begins. Output: study/.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
place=()
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    place=("$1")
    if [ -d "$1" ]; then place=("$(cd "$1" && pwd)"); fi
    shift
fi
cd "$(dirname "$0")/.."
. scripts/environment.sh

[ -n "${place[*]}" ] || place=("${DATASET:-caltech-101}" --scale paper --methods ${METHODS:-distdiff})
[ -z "${MODEL:-}" ] || place+=(--arch "$MODEL")
[ -z "${LR:-}" ] || place+=(--lr "$LR")
[ -z "${GPUS:-}" ] || place+=(--devices $GPUS)
[ -z "${EXPAND_NUM:-}" ] || place+=(--num_images_per_prompt "$EXPAND_NUM")
[ -z "${GUIDE:-}" ] || place+=(--guide "$GUIDE")
command=("$PYTHON" -m expansion.study "${place[@]}" "$@")
[ -n "${DREAMDA_NUM:-}" ] || exec "${command[@]}"
exec "${command[@]}" --config /dev/stdin <<<"method_options: {dreamda: {num_images_per_prompt: $DREAMDA_NUM}}"
