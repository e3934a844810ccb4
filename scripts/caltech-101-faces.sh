#!/usr/bin/env sh
# Caltech-101, DreamDA's 101 classes: DreamDA 20x with and without AMST, from scratch and pretrained (its Table 3).
# DreamDA's Table 3 had prompts by GPT-3.5: PROMPTS=FILE; without it the dataset's template is used.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=caltech-101-faces METHODS="${METHODS:-dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-20}" PRETRAINED="${PRETRAINED:-False True}"
exec bash "$(dirname "$0")/exps/tables.sh"
