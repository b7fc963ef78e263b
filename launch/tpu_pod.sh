#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice, started from your own machine: asks for the slice (spot), sets up all of its VMs, starts
# train.py on all of them, and all that again after a preemption, until the training ends. What is committed is what runs.
#   TPU=resnet ZONE=us-west4-a TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite \
#     launch/tpu_pod.sh --config=configs/resnet50.py --workdir=gs://BUCKET/resnet50 --config.data.root=gs://BUCKET/imagenet
set -euo pipefail
: "${TPU:?a name for the slice}" "${ZONE:?}" "${TYPE:?accelerator type}" "${VERSION:?of the VM image}" "${POLL:=60}"

cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git archive --format=tar.gz --output="$folder/resnet_jax.tar.gz" HEAD
printf -v flags ' %q' "$@"

tpus() { gcloud compute tpus "$@" --zone="$ZONE" --quiet; }
request() { tpus queued-resources describe "$TPU" --format='value(state.state)' 2>/dev/null || echo NONE; }
slice() { tpus tpu-vm describe "$TPU" --format='value(state)' 2>/dev/null || echo NONE; }

train() {
  tpus tpu-vm scp "$folder/resnet_jax.tar.gz" "$TPU:" --worker=all &&
    tpus tpu-vm ssh "$TPU" --worker=all --command="mkdir -p resnet_jax && tar -xzf resnet_jax.tar.gz -C resnet_jax &&
      bash resnet_jax/launch/machine.sh tpu --distributed$flags"
}

while true; do
  state=$(request)
  echo "$(date +%T) $TPU: $state"
  case $state in
    NONE)
      tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" --runtime-version="$VERSION" --spot
      ;;
    ACTIVE)
      code=0
      train || code=$?
      ((code == 0)) || sleep "$POLL" # a preemption shows in the state only after a while
      if ((code == 0)) || [[ $(slice) == READY ]]; then
        echo "training ended with code $code; the slice is still there, and costs. To delete it:"
        echo "  gcloud compute tpus queued-resources delete $TPU --zone=$ZONE --force"
        exit "$code"
      fi
      ;;
    SUSPENDED) # preempted
      tpus queued-resources delete "$TPU" --force
      ;;
    FAILED)
      echo "error: the request for $TYPE in $ZONE failed: gcloud compute tpus queued-resources describe $TPU --zone=$ZONE" >&2
      exit 1
      ;;
  esac
  sleep "$POLL"
done
