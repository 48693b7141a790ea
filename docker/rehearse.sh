#!/usr/bin/env bash
# Restore a backup, and throw away what comes of it: docker/rehearse.sh FOLDER
# Reads all of it as docker/restore.sh does, puts the database into one of its own beside MLflow's, unpacks the storage into
# a temporary folder, and says what there would be. What runs is not touched.
set -euo pipefail
saved=$(realpath -e "${1:?usage: docker/rehearse.sh FOLDER}")
refuse() {
    echo "rehearse: $saved: $1" >&2
    exit 2
}
. "$(dirname "$0")/whole.sh"
. "$(dirname "$0")/stack.sh"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"; compose exec -T postgres dropdb --if-exists --username mlflow idp_rehearsal < /dev/null' EXIT
compose exec -T postgres dropdb --if-exists --username mlflow idp_rehearsal < /dev/null
compose exec -T postgres createdb --username mlflow idp_rehearsal < /dev/null
compose exec -T postgres pg_restore --no-owner --exit-on-error --single-transaction --username mlflow \
    --dbname idp_rehearsal < "$saved/mlflow.dump" || refuse "mlflow.dump can't be restored"
tables=$(compose exec -T postgres psql --username mlflow --dbname idp_rehearsal -Atqc \
    "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'" < /dev/null)
rows=$(compose exec -T postgres psql --username mlflow --dbname idp_rehearsal -Atqc "SELECT count(*) FROM runs" < /dev/null) ||
    refuse "mlflow.dump has no table of runs"
mkdir "$scratch/artifacts" "$scratch/storage"
tar -C "$scratch/artifacts" -xf "$saved/artifacts.tar"
said="rehearse: $saved: $tables tables with $rows runs, $(find "$scratch/artifacts" -type f | wc -l) artifacts"
if [ -e "$saved/storage.tar" ]; then
    tar -C "$scratch/storage" -xpf "$saved/storage.tar"
    said+=", $(find "$scratch/storage" -name result.json | wc -l) results"
fi
echo "$said: it can be restored"
