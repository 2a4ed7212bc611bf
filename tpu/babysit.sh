#!/usr/bin/env bash
# Runs a command to its end on a TPU that may be taken back at any time. Start it where it can keep running: a small VM, tmux, a desktop.
#
#   ZONE=europe-west4-a tpu/babysit.sh NAME -- python -m experiments.babilong --task qa2 --run-dir gs://my-bucket/qa2
#
# Settings: those of create.sh, setup.sh and run.sh (also ENV_NAMES and ENV_FILE), and:
#   MAX_FAILURES      failed attempts in a row before it gives up, default 20
#   BASE_DELAY        seconds before the first new attempt, default 15; doubled each time
#   MAX_DELAY         longest delay in seconds, default 900
#   POLL              seconds between checks while all is well, default 60
#   DELETE_WHEN_DONE  1: delete the TPU after exit code 0 (needs --run-dir gs://...); 0 (default): keep it; it then still costs money
#   DRY_RUN           1: only print what it would do
#
# If the TPU is missing, SUSPENDED, PREEMPTED or FAILED, babysit.sh deletes what is left, creates a new one, sets it up and starts the
# command again. After exit code 75 (preempted and saved, or the bucket cannot be reached), 134 (lost another host) or 143, or if the
# process has vanished, it starts the same command again. With any other exit code it stops and returns that code: also with 64 (bad
# configuration), 70 (NaN) and 74 (disk full or broken), since the same command would fail again.
# You may stop babysit.sh and start it again: it finds a running job and watches it.
# Its own exit codes: 64 bad settings or another job on the TPU, 69 gave up.

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments yes "$@"
MAX_FAILURES=${MAX_FAILURES:-20}
BASE_DELAY=${BASE_DELAY:-15}
MAX_DELAY=${MAX_DELAY:-900}
POLL=${POLL:-60}
for setting in MAX_FAILURES BASE_DELAY MAX_DELAY POLL; do whole_number "$setting"; done
DELETE_WHEN_DONE=${DELETE_WHEN_DONE:-0}
[[ $DELETE_WHEN_DONE != 1 || ${COMMAND[*]} == *gs://* ]] ||
  die "DELETE_WHEN_DONE = 1: needs --run-dir gs://..., or the results are deleted with the TPU"
ID=$(job_id "${COMMAND[@]}")
failures=0
started=no

# Waits before a new attempt, or gives up.
back_off() {
  local delay=$BASE_DELAY i
  failures=$((failures + 1))
  ((failures <= MAX_FAILURES)) || die "$1: gave up after $MAX_FAILURES attempts in a row" "$EXIT_GAVE_UP"
  for ((i = 1; i < failures && delay < MAX_DELAY; i++)); do delay=$((delay * 2)); done
  if ((delay > MAX_DELAY)); then delay=$MAX_DELAY; fi
  say "$NAME: $1; attempt $failures of $MAX_FAILURES in $delay s"
  sleep "$delay"
}

create() {
  if WAIT=0 "$HERE/create.sh" "$NAME"; then sleep "$POLL"; else back_off "create.sh failed"; fi
}

finish() {
  if [[ $DELETE_WHEN_DONE == 1 ]]; then YES=1 "$HERE/delete.sh" "$NAME"; else say "$NAME still exists and costs money; delete it with tpu/delete.sh $NAME"; fi
  exit 0
}

if [[ $DRY_RUN == 1 ]]; then
  note "if the request is missing:"
  "$HERE/create.sh" "$NAME"
  note "if it is SUSPENDED, PREEMPTED or FAILED: delete it, then create it as above"
  YES=1 "$HERE/delete.sh" "$NAME"
  note "once it is ACTIVE, if it is not set up yet:"
  "$HERE/setup.sh" "$NAME"
  note "then, and again after exit code 75:"
  "$HERE/run.sh" "$NAME" -- "${COMMAND[@]}"
  note "every $POLL s, until the answer is not RUNNING:"
  on_workers "bash qrag/src/tpu/vm_job.sh status $ID"
  exit 0
fi

while :; do
  found=$(state)
  case $found in
    ACTIVE) ;;
    MISSING)
      create
      continue
      ;;
    SUSPENDED | PREEMPTED | FAILED)
      back_off "$found"
      if YES=1 "$HERE/delete.sh" "$NAME"; then create; fi
      continue
      ;;
    UNKNOWN)
      back_off "gcloud failed"
      continue
      ;;
    *)
      say "$NAME: $found"
      sleep "$POLL"
      continue
      ;;
  esac

  found=$(job "$ID")
  if [[ $started == no && $found =~ ^[1-9] ]]; then found=NONE; fi # an earlier ending: this new call tries again
  case $found in
    RUNNING)
      failures=0
      started=yes
      sleep "$POLL"
      ;;
    0)
      say "$NAME: done"
      finish
      ;;
    UNREADY)
      "$HERE/setup.sh" "$NAME" || back_off "setup.sh failed"
      ;;
    NONE | LOST | 75 | 134 | 143)
      if [[ $found != NONE ]]; then back_off "job: $found"; fi
      started=yes
      "$HERE/run.sh" "$NAME" -- "${COMMAND[@]}" || back_off "run.sh failed"
      ;;
    UNREACHABLE) back_off "no answer over ssh" ;;
    BUSY) die "another job runs on $NAME (tpu/status.sh $NAME); wait for it, or use another TPU" ;;
    *)
      say "$NAME: the command ended with exit code $found; its log: tpu/status.sh $NAME"
      exit "$found"
      ;;
  esac
done
