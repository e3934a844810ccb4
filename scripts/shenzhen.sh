#!/usr/bin/env sh
# Shenzhen tuberculosis: DistDiff 5x, DreamDA 10x (its Table 3).
# GPUS="0 1 2 3", MODEL, LR, METHODS, EXPAND_NUM (DistDiff) and DREAMDA_NUM can be set from the environment.
export DATASET=shenzhen METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}" DREAMDA_NUM="${DREAMDA_NUM:-10}"
exec bash "$(dirname "$0")/single_exp.sh"
