#!/usr/bin/env bash
# The whole DistDiff experiment of one dataset: guide, EXPAND_NUM-fold expansion with one shard per GPU, training, table.
# Cost: on Caltech-101, 5x, about 14 hours on four RTX 3090. Everything can be set from the environment.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "$0")/.."
export DATASET=${DATASET:-caltech-101} EXPAND_NUM=${EXPAND_NUM:-5}
MODEL=${MODEL:-resnet50}
LR=${LR:-0.1}
read -r -a gpus <<<"${GPUS:-0 1 2 3}"
export TOTAL_SPLIT=${#gpus[@]} GUIDE_MODEL=$MODEL EXP=${EXP:-distdiff_${EXPAND_NUM}x}
export GUIDE=${GUIDE:-checkpoint/$DATASET/${MODEL}_unpretrained_lr$LR/seed1/model_best.pth.tar}

bash scripts/exps/train_original.sh "$DATASET" "$MODEL" "$LR" False "${gpus[0]}"
pids=()
for split in "${!gpus[@]}"; do
    bash scripts/exps/expand_diff.sh "$EXPAND_NUM" "${gpus[$split]}" "$split" & pids+=($!)
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=1; done
[ "$status" = 0 ] || { echo "a shard failed; run the same command to complete it" >&2; exit 1; }
bash scripts/exps/train_expand.sh "$DATASET" "$MODEL" "$LR" "$EXP" False "${gpus[0]}"
"${PYTHON:-python}" parse_logs.py "checkpoint/$DATASET" --table
