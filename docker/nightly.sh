#!/usr/bin/env bash
# A backup that has been rehearsed, and no more of them than so many: docker/nightly.sh FOLDER [KEEP] [--without-storage]
# FOLDER gets a backup named by the time. The oldest are removed once the new one has been restored on trial. For a timer:
# docker/systemd has one for systemd.
set -euo pipefail
folder=$(realpath -m "${1:?usage: docker/nightly.sh FOLDER [KEEP] [--without-storage]}")
keep=${2:-14}
[[ $keep =~ ^[1-9][0-9]*$ ]] || {
    echo "nightly: $keep: expected how many backups to keep" >&2
    exit 2
}
here=$(dirname "$(realpath "$0")")
new=$folder/idp-$(date -u +%Y%m%dT%H%M%SZ)
"$here/backup.sh" "$new" ${3:+"$3"}
"$here/rehearse.sh" "$new"
# Of its own names alone; they sort by time.
find "$folder" -mindepth 1 -maxdepth 1 -type d -regextype posix-extended -regex '.*/idp-[0-9]{8}T[0-9]{6}Z' -printf '%f\n' |
    sort | head -n "-$keep" | while read -r old; do
    rm -rf "${folder:?}/$old"
    echo "nightly: $folder/$old removed"
done
