#!/usr/bin/env bash
# Deletes a TPU VM and its request, with everything on its disk; from then on it costs nothing. Asks first.
#
#   ZONE=europe-west4-a tpu/delete.sh NAME
#
#   ZONE, PROJECT   as for create.sh
#   YES             1: do not ask
#   DRY_RUN         1: only print the command
#
# To keep runs that are in no bucket, copy them first: gcloud compute tpus tpu-vm scp --recurse NAME:qrag/runs . --zone=ZONE

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments no "$@"
delete=(gcloud compute tpus queued-resources delete "$NAME" "${FLAGS[@]}" --force)
if [[ ${YES:-0} == 1 ]]; then delete+=(--quiet); fi
call "${delete[@]}"
