#!/usr/bin/env bash
# A backup that has been rehearsed, and no more of them than so many: docker/nightly.sh FOLDER [KEEP] [--without-storage]
# FOLDER gets a backup named by the time. The oldest are removed once the new one has been restored on trial; one that can't
# be has .unrehearsed behind its name and counts for nothing, and the latest such one is kept. For a timer: docker/systemd
# has one for systemd.
set -euo pipefail
refuse() {
    echo "nightly: $1" >&2
    exit 2
}
if [ $# = 0 ] || [ $# -gt 3 ] || [[ $1 == -* ]]; then refuse "expected FOLDER [KEEP] [--without-storage]"; fi
folder=$(realpath -m "$1")
keep=${2-14}
[[ $keep =~ ^[1-9][0-9]*$ ]] || refuse "$keep: expected how many backups to keep"
here=$(dirname "$(realpath "$0")")
exec {lock}< "$here"
flock --nonblock "$lock" || refuse "another one is at work"
# Of its own names alone; they sort by time.
own() {
    find "$folder" -mindepth 1 -maxdepth 1 -type d -regextype posix-extended -regex ".*/idp-[0-9]{8}T[0-9]{6}Z$1" \
        -printf '%f\n' | sort
}
remove() {
    local old
    while read -r old; do
        rm -rf "${folder:?}/$old"
        echo "nightly: $folder/$old removed"
    done
}
# What nights left that ended in the middle: it would keep the disk full.
[ ! -d "$folder" ] || own '(\.unrehearsed)?\.(part|rehearsal)' | remove
new=$folder/idp-$(date -u +%Y%m%dT%H%M%SZ)
"$here/backup.sh" "$new.unrehearsed" "${@:3}"
own '\.unrehearsed' | head -n -1 | remove
"$here/rehearse.sh" "$new.unrehearsed"
mv "$new.unrehearsed" "$new"
own '' | head -n "-$keep" | remove
echo "nightly: $new"
