#!/usr/bin/env bash
# Sets up this machine and trains on all its accelerators. The same command again goes on where it was stopped.
#   launch/machine.sh cuda --config=configs/resnet50.py --workdir=runs/resnet50 --config.data.root=PATH
#   launch/machine.sh tpu --config=configs/resnet50.py --workdir=gs://BUCKET/resnet50 --config.data.root=gs://BUCKET/imagenet
set -euo pipefail

kind=${1:-}
case $kind in
  cuda) found=$(nvidia-smi --list-gpus 2>/dev/null || true) ;;
  tpu) found=$(find /dev -maxdepth 2 \( -name 'accel[0-9]*' -o -path '/dev/vfio/[0-9]*' \) 2>/dev/null || true) ;;
  *) echo "usage: launch/machine.sh cuda|tpu FLAGS OF train.py" >&2; exit 2 ;;
esac
if [[ -z $found ]]; then
  echo "error: no $kind device on this machine; for a GPU, nvidia-smi must list it" >&2
  exit 2
fi
shift
cd "$(dirname "$0")/.."

python=${PYTHON:-$(command -v python3.13 || command -v python3.12 || command -v python3.11 || true)}
if [[ -z $python ]]; then # the images of TPU VMs have Python 3.10
  sudo apt-get update
  sudo apt-get install --yes python3.11 python3.11-venv
  python=python3.11
fi
make setup PYTHON="$python" EXTRA="$kind,gcs"

export JAX_PLATFORMS="$kind,cpu" # ends with an error, instead of training on the CPU, where the accelerator does not start
exec .venv/bin/python train.py "$@"
