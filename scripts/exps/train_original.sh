#!/usr/bin/env bash
# DATASET MODEL LR PRETRAINED GPU: classifiers on the real images, three seeds.
# Output: checkpoint/<dataset>/<model>_{pretrained|unpretrained}_lr<lr>/seed{1,2,3}.
set -eu
exec "${PYTHON:-python}" train_original.py "$@"
