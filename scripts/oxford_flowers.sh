#!/usr/bin/env sh
# Flowers-102: DistDiff 5x, DreamDA 10x.
# GPUS="0 1 2 3", MODEL, LR, METHODS, EXPAND_NUM (DistDiff) and DREAMDA_NUM can be set from the environment.
export DATASET=oxford_flowers METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}" DREAMDA_NUM="${DREAMDA_NUM:-10}"
exec bash "$(dirname "$0")/single_exp.sh"
