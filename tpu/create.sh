#!/usr/bin/env bash
# Requests a TPU VM (a queued resource and its node, both called NAME) and waits until it exists. From then on it costs money.
#
#   ZONE=europe-west4-a tpu/create.sh NAME
#
#   ZONE          zone of the TPU (required)
#   PROJECT       Google Cloud project; default: the one that gcloud is set to
#   ACCELERATOR   type and size, default v6e-8 (one host of eight chips)
#   RUNTIME       runtime version; default: the one for JAX on that type
#   SPOT          1 (default): spot, cheap, but Google may take it back at any time; 0: on demand
#   CREATE_FLAGS  more flags of `gcloud compute tpus queued-resources create`, separated by spaces
#   WAIT          1 (default): wait; 0: return once the request is queued
#   POLL          seconds between checks while waiting, default 60
#   DRY_RUN       1: only print the commands
#
# If the request exists already, it only waits. Exit codes: 0 done, 64 bad settings, 69 the request ended without a TPU.

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments no "$@"
ACCELERATOR=${ACCELERATOR:-v6e-8}
WAIT=${WAIT:-1}
POLL=${POLL:-60}
whole_number POLL

if [[ -z ${RUNTIME:-} ]]; then
  case $ACCELERATOR in
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) RUNTIME=tpu-ubuntu2204-base ;;
    *) die "ACCELERATOR = '$ACCELERATOR': no runtime version known for it; set RUNTIME (gcloud compute tpus tpu-vm versions list --zone=$ZONE)" ;;
  esac
fi
create=(gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME")
create+=(--accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${FLAGS[@]}")
if [[ ${SPOT:-1} == 1 ]]; then create+=(--spot); fi
read -ra extra <<<"${CREATE_FLAGS:-}"
create+=(${extra[@]+"${extra[@]}"} --async)

if [[ $DRY_RUN == 1 ]]; then
  call "${create[@]}"
  note "then, every $POLL s until it is ACTIVE:"
  call gcloud compute tpus queued-resources describe "$NAME" "${FLAGS[@]}" --format='value(state.state)'
  exit 0
fi

if [[ $(state) == MISSING ]]; then "${create[@]}"; fi
while [[ $WAIT == 1 ]]; do
  found=$(state)
  say "$NAME: $found"
  case $found in
    ACTIVE) break ;;
    FAILED | SUSPENDED | PREEMPTED | MISSING) die "$NAME is $found; delete it (tpu/delete.sh $NAME) and create it again, or use tpu/babysit.sh" "$EXIT_GAVE_UP" ;;
    *) sleep "$POLL" ;;
  esac
done
