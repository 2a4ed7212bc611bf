#!/usr/bin/env bash
# Starts a command on all workers of a TPU VM, detached: it keeps running after you log out. Set up the VM first (setup.sh).
#
#   ZONE=europe-west4-a tpu/run.sh NAME -- python -m experiments.babilong --task qa2 --run-dir gs://my-bucket/qa2
#
#   ZONE, PROJECT   as for create.sh
#   DRY_RUN         1: only print the command
#
# With --run-dir gs://BUCKET/NAME the command keeps its run in the bucket. Without it, the run is lost with the VM.
# The command runs in ~/qrag, with ~/qrag/venv first on the PATH. Log: ~/qrag/job/log; exit code, once it has ended: ~/qrag/job/exit.
# To set an environment variable that is not secret: -- env NAME=VALUE python -m ... For a secret, such as OPENAI_API_KEY or HF_TOKEN:
#   ENV_NAMES       names of variables of this shell, separated by spaces; the command gets them with their values
#   ENV_FILE        or: a file of NAME=VALUE lines; only you should be able to read it
# The values travel over ssh in a file, because others could see an argument list (ps). The VM removes the file when the command starts.
# Only one job runs at a time. While it runs, starting the same command changes nothing, and another command is refused (64).

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments yes "$@"
if [[ ${COMMAND[*]} != *gs://* ]]; then say "no --run-dir gs://BUCKET/NAME: the run directory is only on the VM and is lost with it"; fi
send_environment
on_workers "$(remote bash qrag/src/tpu/vm_job.sh start "$(job_id "${COMMAND[@]}")" -- "${COMMAND[@]}")"
