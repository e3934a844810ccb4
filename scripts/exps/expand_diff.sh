#!/usr/bin/env bash
# EXPAND_NUM GPU SPLIT [OPTION ...]: one shard of a DistDiff expansion; options go to expand.py.
# Cost: about 13 s per image on an RTX 3090. Output: data/$DATASET_expansion/$EXP.
set -eu
EXPAND_NUM=$1 GPU=$2 SPLIT=$3
shift 3
DATASET=${DATASET:-caltech-101}
TOTAL_SPLIT=${TOTAL_SPLIT:-4}
GUIDE_MODEL=${GUIDE_MODEL:-resnet50}
GUIDE=${GUIDE:-checkpoint/$DATASET/${GUIDE_MODEL}_unpretrained_lr0.1/seed1/model_best.pth.tar}
EXP=${EXP:-distdiff_${EXPAND_NUM}x}
export CUDA_VISIBLE_DEVICES="$GPU"
exec "${PYTHON:-python}" expand.py --dataset "$DATASET" --method distdiff --exp "$EXP" \
    --arch "$GUIDE_MODEL" --encoder_weight_path "$GUIDE" --num_images_per_prompt "$EXPAND_NUM" \
    --total_split "$TOTAL_SPLIT" --split "$SPLIT" "$@"
