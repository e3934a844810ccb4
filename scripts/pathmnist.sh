#!/usr/bin/env sh
# PathMNIST: DistDiff 5x at strength 0.2 with LAION's CLIP ViT-B/32 as classifier and a ResNet-50 as guide (its Table 2;
# METHODS="img2img distdiff" for its row SD too), DreamDA 10x.
# GPUS="0 1 2 3", METHODS, EXPAND_NUM (img2img, DistDiff), DREAMDA_NUM and what exps/tables.sh lists can be set from the environment.
export DATASET=pathmnist METHODS="${METHODS:-distdiff dreamda}" EXPAND_NUM="${EXPAND_NUM:-5}"
export DREAMDA_NUM="${DREAMDA_NUM:-10}" MODEL="${MODEL:-open_clip_vit_b32}" PRETRAINED="${PRETRAINED:-True}"
export PRETRAINED_LR="${PRETRAINED_LR:-3e-5}" GUIDE_MODEL="${GUIDE_MODEL:-resnet50}"
exec bash "$(dirname "$0")/exps/tables.sh"
