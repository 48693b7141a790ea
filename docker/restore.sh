#!/usr/bin/env bash
# Put back what docker/backup.sh has saved, on this machine or a new one: docker/restore.sh FOLDER
# Needs the image (`make image`). MLflow's database and artifacts are replaced; .env, secrets and the storage are put
# back only where there are none.
set -euo pipefail
saved=$(realpath -e "${1:?usage: docker/restore.sh FOLDER}")
cd "$(dirname "$0")/.."
[ -e .env ] || cp -p "$saved/env" .env
[ -e docker/secrets ] || cp -rp "$saved/secrets" docker/secrets
docker/secrets.sh
. docker/stack.sh
storage=$(setting IDP_STORAGE)
if [ -e "$saved/storage.tar" ] && [ -z "$(ls -A "$storage")" ]; then
    tar -C "$storage" -xpf "$saved/storage.tar"
fi
compose stop mlflow > /dev/null
compose up -d postgres
for _ in $(seq 60); do
    if compose exec -T postgres pg_isready -q -h 127.0.0.1 -U mlflow -d mlflow; then break; fi
    sleep 1
done
compose exec -T postgres psql --quiet --username mlflow --dbname mlflow -v ON_ERROR_STOP=1 \
    -c 'DROP SCHEMA public CASCADE; CREATE SCHEMA public;'
compose exec -T postgres pg_restore --username mlflow --dbname mlflow --no-owner --exit-on-error < "$saved/mlflow.dump"
compose run --rm -T mlflow sh -c 'rm -rf /artifacts/* && tar -C /artifacts -xf -' < "$saved/artifacts.tar"
compose up -d
echo "restore: done from $saved"
