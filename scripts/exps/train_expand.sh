#!/usr/bin/env bash
# DATASET MODEL LR EXP PRETRAINED GPU: classifiers on real + generated images, three seeds.
# Input: data/<dataset>_expansion/<exp>. Output: checkpoint/<dataset>/<model>_..._<exp>_lr<lr>/seed{1,2,3}.
set -eu
exec "${PYTHON:-python}" train_expand.py "$@"
