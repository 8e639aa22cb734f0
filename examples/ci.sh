#!/usr/bin/env bash
# What the CI of a project that trains with metricli runs: look at the table, train, refuse a model that is
# not good enough, and save the features of the one that is.
#
#     examples/ci.sh [SPEC] [WORK_FOLDER]
#
# SPEC defaults to the figures example, WORK_FOLDER (made if needed; takes runs/, best.ckpt, metrics.json and
# feats.*) to runs/ci. GATE sets the quality gate, by default cmc@1=0.5. It runs on a GPU, and with
# METRICLI_DEVICE=cpu on any machine. The exit code is that of the command that failed; 8 is the gate.
set -euo pipefail

spec=$(realpath "${1:-$(dirname "$0")/configs/figures_triplet.yaml}")
work=${2:-runs/ci}
gate=${GATE:-cmc@1=0.5}

mkdir -p "$work"
cd "$work"

metricli inspect-dataset "$spec"
metricli train "$spec"
cp "$(ls -t runs/*/checkpoints/best.ckpt | head -n 1)" best.ckpt
metricli validate --ckpt best.ckpt --fail-under "$gate" --out .
metricli predict --gpus 1 --out feats.npy # of the newest run under ./runs
