#!/usr/bin/env sh
# Oxford-IIIT Pets: DistDiff 5x, DreamDA 30x with and without AMST, from scratch and pretrained (its Table 3).
# DreamDA's Table 3 had prompts by GPT-3.5: PROMPTS=FILE; without it the dataset's template is used.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=oxford_pets METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-30}" PRETRAINED="${PRETRAINED:-False True}"
exec bash "$(dirname "$0")/exps/tables.sh"
