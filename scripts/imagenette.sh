#!/usr/bin/env sh
# ImageNette: DistDiff 5x with pretrained classifiers (its Table 2; METHODS="img2img distdiff" for its row SD too), DreamDA 10x.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=imagenette METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-10}" PRETRAINED="${PRETRAINED:-True}"
exec bash "$(dirname "$0")/exps/tables.sh"
