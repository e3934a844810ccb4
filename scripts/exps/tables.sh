#!/usr/bin/env bash
# A dataset as in the papers' tables: guide, expansions with one shard per GPU, classifiers with three seeds, table.
# Cost: on Caltech-101, DistDiff 5x, about 14 hours on four RTX 3090. Everything can be set from the environment:
#   METHODS="img2img distdiff dreamda", EXPAND_NUM and DREAMDA_NUM variants, PROMPTS=FILE (DreamDA's --prompts_file);
#   MODEL with LR from scratch and PRETRAINED_LR from pretrained weights, PRETRAINED="False True" for both;
#   GUIDE_MODEL and GUIDE_LR of DistDiff's guide; OPTIONS of every command, TRAIN_OPTIONS of the classifiers'.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail -f # options are split at blanks, and nothing else
cd "$(dirname "$0")/../.."
. scripts/stopping.bash
. scripts/environment.sh
export DATASET=${DATASET:-caltech-101}
MODEL=${MODEL:-resnet50} LR=${LR:-0.1} METHODS=${METHODS:-distdiff} OPTIONS=${OPTIONS:-}
PRETRAINED=${PRETRAINED:-False} PRETRAINED_LR=${PRETRAINED_LR:-0.01} GUIDE_LR=${GUIDE_LR:-$LR}
read -r -a gpus <<<"${GPUS:-0 1 2 3}"
export TOTAL_SPLIT=${#gpus[@]} GUIDE_MODEL=${GUIDE_MODEL:-$MODEL}
export GUIDE=${GUIDE:-checkpoint/$DATASET/${GUIDE_MODEL}_unpretrained_lr$GUIDE_LR/seed1/model_best.pth.tar}

train() { # SCRIPT PRETRAINED [EXP] [OPTION ...]: classifiers of MODEL
    local script=$1 pretrained=$2 lr=$LR
    [ "$pretrained" != True ] || lr=$PRETRAINED_LR
    shift 2
    attended bash "scripts/exps/$script.sh" "$DATASET" "$MODEL" "$lr" ${1:+"$1"} "$pretrained" "${gpus[0]}" "${@:2}" $OPTIONS ${TRAIN_OPTIONS:-}
}

case " $METHODS " in
    *" distdiff "*) attended bash scripts/exps/train_original.sh "$DATASET" "$GUIDE_MODEL" "$GUIDE_LR" False "${gpus[0]}" $OPTIONS ;;
esac
for pretrained in $PRETRAINED; do train train_original "$pretrained"; done
for method in $METHODS; do
    prompts=""
    case $method in
        img2img) script=expand_img2img num=${EXPAND_NUM:-5} all_labels=seed ;;
        distdiff) script=expand_diff num=${EXPAND_NUM:-5} all_labels=seed ;;
        dreamda) script=expand_dreamda num=${DREAMDA_NUM:-10} all_labels=${LABELS:-seed amst} prompts=${PROMPTS:-} ;;
        *) echo "unknown method $method; METHODS may hold img2img, distdiff and dreamda" >&2; exit 2 ;;
    esac
    export EXP=${method}_${num}x
    pids=() status=0
    for split in "${!gpus[@]}"; do
        bash "scripts/exps/$script.sh" "$num" "${gpus[$split]}" "$split" $OPTIONS ${prompts:+--prompts_file "$prompts"} & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || status=1; done
    [ "$status" = 0 ] || { echo "a shard failed; run the same command to complete it" >&2; exit 1; }
    for pretrained in $PRETRAINED; do
        for labels in $all_labels; do train train_expand "$pretrained" "$EXP" --labels "$labels"; done
    done
done
"$PYTHON" parse_logs.py "checkpoint/$DATASET" --table
