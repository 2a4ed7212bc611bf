#!/usr/bin/env bash
# Deletes a TPU VM, its request and everything on its disk, after asking. From then on it costs nothing.
#
#   ZONE=europe-west4-a tpu/delete.sh NAME
#
#   ZONE, PROJECT   as for create.sh
#   YES             1: delete without asking
#   DRY_RUN         1: only print the command
#
# To keep runs that are not in a bucket, copy them first: gcloud compute tpus tpu-vm scp --recurse NAME:qrag/runs . --zone=ZONE

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments no "$@"
delete=(gcloud compute tpus queued-resources delete "$NAME" "${FLAGS[@]}" --force)
if [[ ${YES:-0} == 1 ]]; then delete+=(--quiet); fi
call "${delete[@]}"
