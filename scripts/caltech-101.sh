#!/usr/bin/env sh
# Caltech-101, DistDiff's 100 classes: DistDiff 5x (its Table 1), DreamDA 20x (its Table 3 is caltech-101-faces.sh).
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=caltech-101 METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-20}"
exec bash "$(dirname "$0")/exps/tables.sh"
