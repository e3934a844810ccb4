#!/usr/bin/env sh
# Shenzhen tuberculosis: DistDiff 5x, DreamDA 10x with and without AMST, from scratch and pretrained (its Table 3).
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=shenzhen METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-10}" PRETRAINED="${PRETRAINED:-False True}"
exec bash "$(dirname "$0")/exps/tables.sh"
