#!/usr/bin/env bash
# Copies this checkout to every worker of a TPU VM (~/qrag/src) and installs it with ".[tpu,gcs]" into ~/qrag/venv.
#
#   ZONE=europe-west4-a tpu/setup.sh NAME
#
#   ZONE, PROJECT   as for create.sh
#   REPO_URL        clone this repository on the workers instead of copying the checkout (manifest.json then holds the commit)
#   REPO_REF        branch, tag or commit of REPO_URL, default main
#   DRY_RUN         1: only print the commands
#
# It copies all files that git tracks or would add, as they are now. Run it again after a change, but not while a job runs. Runs
# (~/qrag/runs) are kept.

# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
arguments no "$@"
ROOT=$(dirname "$HERE")

if [[ -n ${REPO_URL:-} ]]; then
  ref=${REPO_REF:-main}
  # A branch is known only by its remote name; a tag or a commit by its own.
  place="rm -rf qrag/src && $(remote git clone --quiet "$REPO_URL") qrag/src && cd qrag/src && { $(remote git checkout --quiet --detach "origin/$ref") 2>/dev/null || $(remote git checkout --quiet --detach "$ref"); } && cd"
else
  archive=qrag-src.tgz
  if [[ $DRY_RUN == 1 ]]; then
    note "in the checkout:"
    echo "git ls-files -z --cached --others --exclude-standard | tar --create --gzip --file=$archive --null --no-recursion --files-from=-"
  else
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    archive=$scratch/$archive
    # git also lists files whose deletion is not committed yet; they are skipped.
    git -C "$ROOT" ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do if [[ -e $ROOT/$file ]]; then printf '%s\0' "$file"; fi; done |
      tar --create --gzip --file="$archive" --directory="$ROOT" --null --no-recursion --files-from=-
  fi
  call gcloud compute tpus tpu-vm scp "$archive" "$NAME:qrag-src.tgz" "${FLAGS[@]}" --worker=all
  place='rm -rf qrag/new && mkdir -p qrag/new && tar -xzf qrag-src.tgz -C qrag/new && rm -rf qrag/src && mv qrag/new qrag/src'
fi
on_workers "mkdir -p qrag && rm -f qrag/ready && $place && bash qrag/src/tpu/vm_setup.sh"
