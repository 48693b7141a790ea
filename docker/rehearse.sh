#!/usr/bin/env bash
# Restore a backup, and throw away what comes of it: docker/rehearse.sh FOLDER
# Reads all of it as docker/restore.sh does, puts the database into one of its own beside MLflow's, unpacks the storage into
# a temporary folder beside the backup, and says what there would be. What runs is not touched.
set -euo pipefail
if [ $# != 1 ] || [[ $1 == -* ]]; then
    echo "rehearse: expected FOLDER, a backup of docker/backup.sh" >&2
    exit 2
fi
saved=$(realpath -e "$1")
refuse() {
    echo "rehearse: $saved: $1" >&2
    exit 2
}
. "$(dirname "$0")/whole.sh"
. "$(dirname "$0")/stack.sh"

scratch=$saved.rehearsal # on the disk that holds the backup: /tmp may be small, or memory
drop() { compose exec -T postgres dropdb --if-exists --username mlflow idp_rehearsal < /dev/null; }
drop || refuse "PostgreSQL does not answer (docker compose ps)"
trap 'rm -rf "$scratch"; drop' EXIT
compose exec -T postgres createdb --username mlflow idp_rehearsal < /dev/null
compose exec -T postgres pg_restore --no-owner --exit-on-error --single-transaction --username mlflow \
    --dbname idp_rehearsal < "$saved/mlflow.dump" || refuse "mlflow.dump can't be restored"
tables=$(compose exec -T postgres psql --username mlflow --dbname idp_rehearsal -Atqc \
    "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'" < /dev/null)
rows=$(compose exec -T postgres psql --username mlflow --dbname idp_rehearsal -Atqc "SELECT count(*) FROM runs" < /dev/null) ||
    refuse "mlflow.dump has no table of runs"
rm -rf "$scratch"
mkdir -m 700 "$scratch"
unpack() {
    mkdir "$scratch/$1"
    tar -C "$scratch/$1" -xpf "$saved/$1.tar" ||
        refuse "$1.tar can't be unpacked beside it, which takes $(du -h "$saved/$1.tar" | cut -f1) for the time"
}
unpack artifacts
said="rehearse: $saved: $tables tables with $rows runs, $(find "$scratch/artifacts" -type f | wc -l) artifacts"
if [ -e "$saved/storage.tar" ]; then
    unpack storage
    said+=", $(find "$scratch/storage" -name result.json | wc -l) results"
fi
echo "$said: it can be restored"
