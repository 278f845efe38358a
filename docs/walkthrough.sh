#!/usr/bin/env bash
# From an annotator's export to entities over HTTP: bash docs/walkthrough.sh ANNOTATED MORE user/repo [PORT [OPTIONS OF TRAIN.PY]]
# ANNOTATED and MORE are folders with doccano's export as train.jsonl and valid.jsonl, and the posts' images in images/. Types of
# MORE may be new. The models go to outputs/walkthrough, or the folder that WALKTHROUGH names.
set -euo pipefail
annotated=$1 more=$2 repo=$3 port=${4:-8000} output=${WALKTHROUGH:-outputs/walkthrough} options=("${@:5}")

# Train a small model. configs/paper.yaml in place of configs/demo.yaml starts from pretrained encoders.
python train.py configs/demo.yaml --data_path "$annotated" --region_config '{name: anchors}' --output_dir "$output/first" "${options[@]}"

# Score it. errors.html shows what it gets wrong.
python train.py --model "$output/first" --data_path "$annotated" --do_eval --output_dir "$output/scores"

# Train it further, on posts with a type that is new to it.
python train.py configs/demo.yaml --model "$output/first" --data_path "$more" --output_dir "$output/model" "${options[@]}"

# Put it on the Hub, and check it as a stranger would load it.
python -m hub_scripts.push_to_hub "$output/model" "$repo"
python -m hub_scripts.verify_repo "$repo"

# Serve it from there.
python serve.py --model "$repo" --port "$port" &
service=$!
trap 'kill $service; wait $service || true' EXIT
curl --silent --retry 300 --retry-delay 1 --retry-connrefused "http://127.0.0.1:$port/health"
echo

# Tag a post with its image.
echo "{\"text\": \"everybody talks about Jordan tonight\", \"image\": \"$(base64 < examples/photo.jpg | tr -d '\n')\"}" |
    curl --silent --fail-with-body --header 'Content-Type: application/json' --data @- "http://127.0.0.1:$port/tag"
echo
