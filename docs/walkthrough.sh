#!/usr/bin/env bash
# From a trained model to entities over HTTP: bash docs/walkthrough.sh MODEL_FOLDER user/repo [PORT]
set -euo pipefail
model=$1 repo=$2 port=${3:-8000}

# Put it on the Hub, and check it as a stranger would load it.
python -m hub_scripts.push_to_hub "$model" "$repo"
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
