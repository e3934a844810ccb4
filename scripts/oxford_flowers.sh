#!/usr/bin/env sh
# Flowers-102: DistDiff 5x, DreamDA 10x. Neither paper has results for it.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=oxford_flowers METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-10}"
exec bash "$(dirname "$0")/exps/tables.sh"
