#!/usr/bin/env bash
# Runs on the TPU VM; setup.sh calls it. It installs ~/qrag/src with the extras tpu and gcs into ~/qrag/venv. It may run again.
set -euo pipefail
cd "$HOME/qrag"
rm -f ready

# The runtime images have Python 3.10, which is too old; uv installs its own Python.
if [[ ! -x venv/bin/python ]]; then
  if [[ ! -x bin/uv ]]; then
    curl --proto '=https' -LsSf https://astral.sh/uv/install.sh -o install-uv.sh
    UV_UNMANAGED_INSTALL="$PWD/bin" sh install-uv.sh
    rm install-uv.sh
  fi
  bin/uv venv --quiet --seed --python 3.12 venv
fi
venv/bin/python -m pip install --quiet --editable 'src[tpu,gcs]'
touch ready
