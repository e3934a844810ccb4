#!/usr/bin/env sh
# Stanford Cars: DistDiff 5x (its Fig. 4 and Table 2), DreamDA 20x (its Table 3).
# GPUS="0 1 2 3", MODEL, LR, METHODS, EXPAND_NUM (DistDiff) and DREAMDA_NUM can be set from the environment.
export DATASET=stanford_cars METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}" DREAMDA_NUM="${DREAMDA_NUM:-20}"
exec bash "$(dirname "$0")/single_exp.sh"
