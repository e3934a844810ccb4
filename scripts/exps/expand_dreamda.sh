#!/usr/bin/env bash
# EXPAND_NUM GPU SPLIT [OPTION ...]: one shard of a DreamDA expansion; options go to expand.py.
# Cost: 160 + 80/EXPAND_NUM U-Net rows per image. Output: data/$DATASET_expansion/$EXP.
set -eu
EXPAND_NUM=$1 GPU=$2 SPLIT=$3
shift 3
DATASET=${DATASET:-caltech-101}
TOTAL_SPLIT=${TOTAL_SPLIT:-4}
EXP=${EXP:-dreamda_${EXPAND_NUM}x}
export CUDA_VISIBLE_DEVICES="$GPU"
exec "${PYTHON:-python}" expand.py --dataset "$DATASET" --method dreamda --exp "$EXP" \
    --num_images_per_prompt "$EXPAND_NUM" --total_split "$TOTAL_SPLIT" --split "$SPLIT" "$@"
