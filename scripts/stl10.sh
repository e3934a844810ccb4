#!/usr/bin/env sh
# STL-10, 40 labels and the 100,000 unlabelled images, by SoftMatch: real images alone and DreamDA 10x (its Table 3, from scratch
# and pretrained), whose AMST learns from its rejected images and the unlabelled ones together. LABELS=amst leaves out seed labels.
# DreamDA's Table 3 had prompts by GPT-3.5: PROMPTS=FILE; without it the dataset's template is used.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=stl10 METHODS="${METHODS:-dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}" DREAMDA_NUM="${DREAMDA_NUM:-10}"
export PRETRAINED="${PRETRAINED:-False True}" LABELS="${LABELS:-seed amst}" OPTIONS="${OPTIONS:---shots 4}"
export TRAIN_OPTIONS="${TRAIN_OPTIONS:---unlabeled_dir data/stl10/unlabeled --budget steps --max_train_steps 100000 --unlabeled_ratio 7}"
exec bash "$(dirname "$0")/exps/tables.sh"
