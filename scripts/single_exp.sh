#!/usr/bin/env bash
# One dataset from end to end: guide, expansions with one shard per GPU, classifiers with three seeds, table.
# Cost: on Caltech-101, DistDiff 5x, about 14 hours on four RTX 3090. Everything can be set from the environment.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/stopping.bash
export DATASET=${DATASET:-caltech-101}
MODEL=${MODEL:-resnet50} LR=${LR:-0.1} METHODS=${METHODS:-distdiff}
read -r -a gpus <<<"${GPUS:-0 1 2 3}"
export TOTAL_SPLIT=${#gpus[@]} GUIDE_MODEL=$MODEL
export GUIDE=${GUIDE:-checkpoint/$DATASET/${MODEL}_unpretrained_lr$LR/seed1/model_best.pth.tar}

attended bash scripts/exps/train_original.sh "$DATASET" "$MODEL" "$LR" False "${gpus[0]}"
for method in $METHODS; do
    case $method in
        distdiff) script=expand_diff num=${EXPAND_NUM:-5} all_labels=seed ;;
        dreamda) script=expand_dreamda num=${DREAMDA_NUM:-10} all_labels="seed amst" ;;
        *) echo "unknown method $method; METHODS may hold distdiff and dreamda" >&2; exit 2 ;;
    esac
    export EXP=${method}_${num}x
    pids=() status=0
    for split in "${!gpus[@]}"; do
        bash "scripts/exps/$script.sh" "$num" "${gpus[$split]}" "$split" & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    [ "$status" = 0 ] || { echo "a shard failed; run the same command to complete it" >&2; exit 1; }
    for labels in $all_labels; do
        attended bash scripts/exps/train_expand.sh "$DATASET" "$MODEL" "$LR" "$EXP" False "${gpus[0]}" --labels "$labels"
    done
done
"${PYTHON:-python}" parse_logs.py "checkpoint/$DATASET" --table
