#!/usr/bin/env sh
# Oxford-IIIT Pets: DistDiff 5x, DreamDA 30x (its Table 3).
# GPUS="0 1 2 3", MODEL, LR, METHODS, EXPAND_NUM (DistDiff) and DREAMDA_NUM can be set from the environment.
export DATASET=oxford_pets METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}" DREAMDA_NUM="${DREAMDA_NUM:-30}"
exec bash "$(dirname "$0")/single_exp.sh"
