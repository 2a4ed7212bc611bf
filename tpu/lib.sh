# shellcheck shell=bash
# Shared by the scripts in this folder: settings, help, dry runs, states. It is sourced, not run.
# shellcheck disable=SC2034  # used by the scripts that source this file
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
EXIT_BAD_USE=64 # as in qrag_jax/rundir/ending.py
EXIT_GAVE_UP=69 # no TPU
DRY_RUN=${DRY_RUN:-0}

die() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-$EXIT_BAD_USE}"
}

say() { printf '%s %s\n' "$(date -u +%H:%M:%S)" "$*" >&2; }

# The comment at the top of a script is its help.
help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit 0
}

# Reads NAME (and `-- COMMAND...`, if the script takes a command) into NAME and COMMAND; checks the settings that every call needs.
arguments() {
  local wants_command=$1
  shift
  case ${1:-} in -h | --help) help ;; esac
  NAME=${1:-}
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] || die "NAME = '$NAME': must consist of lower-case letters, digits and dashes, and begin with a letter; see --help"
  shift
  COMMAND=()
  if [[ $wants_command == yes ]]; then
    [[ ${1:-} == -- && $# -ge 2 ]] || die "after NAME must come: -- COMMAND...; see --help"
    shift
    COMMAND=("$@")
    refuse_secrets
  elif (($#)); then
    die "unexpected argument '$1'; see --help"
  fi
  [[ -n ${ZONE:-} ]] || die "ZONE is not set; set it, for example ZONE=europe-west4-a (gcloud compute tpus locations list shows all)"
  FLAGS=(--zone="$ZONE")
  if [[ -n ${PROJECT:-} ]]; then FLAGS+=(--project="$PROJECT"); fi
  [[ -z ${RUN_BUCKET:-} ]] || die "RUN_BUCKET is no longer used; give the command --run-dir gs://BUCKET/NAME"
}

# Everyone on the machine can read a command line (ps), and it is stored in the job's folder.
refuse_secrets() {
  local word
  for word in "${COMMAND[@]}"; do
    if [[ $word =~ ^-*([A-Za-z0-9_-]*[_-])?(KEY|TOKEN|SECRET|PASSWORD|key|token|secret|password)=. || $word =~ ://[^/[:space:]]*:[^/[:space:]]*@ ]]; then
      if [[ $word == *://* ]]; then word="an address"; fi
      die "the command holds the value of ${word%%=*}, a secret that ps would show; give its name in ENV_NAMES, or a file in ENV_FILE; see tpu/run.sh --help"
    fi
  done
}

# Copies the variables of ENV_NAMES, or the file ENV_FILE, to ~/qrag-env on all workers. vm_job.sh reads that file and removes it.
send_environment() {
  local name line number=0 scratch
  [[ -z ${ENV_NAMES:-} || -z ${ENV_FILE:-} ]] || die "ENV_NAMES and ENV_FILE: give one of them"
  if [[ -z ${ENV_NAMES:-}${ENV_FILE:-} ]]; then return; fi
  if [[ -n ${ENV_FILE:-} && ! -r ${ENV_FILE:-} ]]; then die "ENV_FILE = '$ENV_FILE': no such file, or it cannot be read"; fi
  scratch=$(umask 077 && mktemp)
  # shellcheck disable=SC2064  # the name is expanded now
  trap "rm -f '$scratch'" EXIT
  for name in ${ENV_NAMES:-}; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || die "ENV_NAMES: must be names of variables, not their values"
    [[ -n ${!name+set} ]] || die "ENV_NAMES: $name is not set; export it first"
    [[ ${!name} != *$'\n'* ]] || die "ENV_NAMES: the value of $name has more than one line; put it in a file, and give the command the file's name"
    printf '%s=%s\n' "$name" "${!name}" >>"$scratch"
  done
  if [[ -n ${ENV_FILE:-} ]]; then
    while IFS= read -r line || [[ -n $line ]]; do
      number=$((number + 1))
      if [[ -z $line || $line == \#* ]]; then continue; fi
      [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "ENV_FILE = '$ENV_FILE': line $number: must be NAME=VALUE"
      printf '%s\n' "$line" >>"$scratch"
    done <"$ENV_FILE"
  fi
  if [[ $DRY_RUN == 1 ]]; then
    note "with the variables in a file of your own:"
    call gcloud compute tpus tpu-vm scp qrag-env "$NAME:qrag-env" "${FLAGS[@]}" --worker=all
  else
    gcloud compute tpus tpu-vm scp "$scratch" "$NAME:qrag-env" "${FLAGS[@]}" --worker=all
  fi
}

whole_number() { [[ ${!1} =~ ^[1-9][0-9]*$ ]] || die "$1 = '${!1}': must be a whole number above 0"; }

# Quotes words as one line of shell: pasted, or run by `bash -c`, it gives the same words.
quoted() {
  local word line=''
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then line+=" $word"; else line+=" '${word//\'/\'\\\'\'}'"; fi
  done
  printf '%s\n' "${line# }"
}

# Runs a command; with DRY_RUN=1 only prints it.
call() {
  if [[ $DRY_RUN == 1 ]]; then quoted "$@"; else "$@"; fi
}

note() { if [[ $DRY_RUN == 1 ]]; then printf '# %s\n' "$*"; fi; }

on_workers() { call gcloud compute tpus tpu-vm ssh "$NAME" "${FLAGS[@]}" --worker=all --command="$1"; }

# Quotes words for the shell on the other side of ssh.
remote() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Prints a field of `gcloud ... describe`, or MISSING, or UNKNOWN if gcloud failed for another reason, which goes to stderr.
describe() {
  local errors found
  errors=$(mktemp)
  if found=$(gcloud compute tpus "$1" describe "$NAME" "${FLAGS[@]}" --format="value($2)" 2>"$errors"); then
    printf '%s\n' "${found:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|not found' "$errors"; then
    echo MISSING
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

# State of the queued resource: ACTIVE only if its TPU VM is READY too, PREEMPTED if the VM is gone.
state() {
  local found node
  found=$(describe queued-resources state.state)
  if [[ $found == ACTIVE ]]; then
    node=$(describe tpu-vm state)
    case $node in
      READY) ;;
      PREEMPTED | TERMINATED | MISSING) found=PREEMPTED ;;
      *) found=VM_$node ;;
    esac
  fi
  echo "$found"
}

# State of the job ID according to vm_job.sh on all workers: UNREACHABLE, UNREADY (not set up), NONE, RUNNING, BUSY, LOST, or an exit code.
job() {
  local answers code=0
  answers=$(on_workers "if [ -e qrag/ready ]; then bash qrag/src/tpu/vm_job.sh status $1; else echo qrag-job UNREADY; fi") || code=$?
  answers=$(sed -n 's/^qrag-job //p' <<<"$answers")
  if ((code)) || [[ -z $answers ]]; then
    echo UNREACHABLE
    return
  fi
  local word
  for word in 64 BUSY UNREADY LOST NONE RUNNING; do
    if grep -qx "$word" <<<"$answers"; then echo "$word" && return; fi
  done
  # All have ended. A failure that would only repeat takes precedence over one that may be tried again.
  { grep -vxE '0|75|134|143' <<<"$answers" || grep -vx 0 <<<"$answers" || echo 0; } | head -n 1
}

# An ID for a command on the VM, so that the exit code of another command is not taken for its own.
job_id() { quoted "$@" | cksum | cut -d' ' -f1; }
