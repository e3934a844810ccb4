#!/usr/bin/env sh
# CIFAR-100, 100 images a class: DistDiff 5x (its Fig. 3), DreamDA 10x.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=cifar100_subset METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-10}"
exec bash "$(dirname "$0")/exps/tables.sh"
