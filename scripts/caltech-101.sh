#!/usr/bin/env sh
# Caltech-101: DistDiff 5x (its Table 1), DreamDA 20x with and without AMST (its Table 3).
# GPUS="0 1 2 3", MODEL, LR, METHODS, EXPAND_NUM (DistDiff) and DREAMDA_NUM can be set from the environment.
export DATASET=caltech-101 METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}" DREAMDA_NUM="${DREAMDA_NUM:-20}"
exec bash "$(dirname "$0")/single_exp.sh"
