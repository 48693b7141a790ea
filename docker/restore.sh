#!/usr/bin/env bash
# Put back what docker/backup.sh has saved, on this machine or a new one: docker/restore.sh FOLDER
# Needs the image (`make image`). MLflow's database and artifacts are replaced, each at once and only after the whole
# backup has been read; .env, secrets and the storage are put back only where there are none.
set -Eeuo pipefail
if [ $# != 1 ] || [[ $1 == -* ]]; then
    echo "restore: expected FOLDER, a backup of docker/backup.sh" >&2
    exit 2
fi
saved=$(realpath -e "$1")
refuse() {
    echo "restore: $saved: $1; nothing that was here has changed" >&2
    exit 2
}

. "$(dirname "$0")/whole.sh"
cd "$(dirname "$0")/.."

back() { # FROM TO
    if [ ! -e "$2" ]; then
        cp -rp "$saved/$1" "$2"
    elif ! diff -rq "$saved/$1" "$2" > /dev/null; then
        echo "restore: $2 is here already and stays as it is; what was saved is another: $saved/$1" >&2
    fi
}
back env .env
back secrets docker/secrets
docker/secrets.sh
. docker/stack.sh
compose up -d postgres
for second in $(seq 61); do
    if compose exec -T postgres pg_isready -q -h 127.0.0.1 -U mlflow -d mlflow; then break; fi
    [ "$second" -lt 61 ] || refuse "PostgreSQL does not start (docker compose logs postgres)"
    sleep 1
done
# Its contents, and then every byte of it.
compose exec -T postgres pg_restore --list < "$saved/mlflow.dump" > /dev/null || refuse "mlflow.dump is no dump"
compose exec -T postgres pg_restore --file /dev/null < "$saved/mlflow.dump" || refuse "mlflow.dump is not whole"

storage=$(setting IDP_STORAGE)
if [ -e "$saved/storage.tar" ] && [ -z "$(ls -A "$storage" | grep -vx .restored || true)" ]; then
    # Beside, so that a storage that was put back by half is not taken for one that is there.
    rm -rf "$storage/.restored"
    mkdir "$storage/.restored"
    tar -C "$storage/.restored" -xpf "$saved/storage.tar" || {
        rm -rf "$storage/.restored"
        refuse "storage.tar can't be unpacked into $storage"
    }
    find "$storage/.restored" -mindepth 1 -maxdepth 1 -exec mv -t "$storage" {} +
    rmdir "$storage/.restored"
fi

trap 'echo "restore: failed; the database is as it was; \`docker compose up -d\` starts MLflow again" >&2' ERR
compose stop mlflow > /dev/null
compose run --rm -T mlflow sh -c \
    'cd /artifacts && rm -rf .restored && mkdir .restored && tar -C .restored -xf -' < "$saved/artifacts.tar"
# From a file, not a pipe: psql would commit what it has when the other end breaks.
compose exec -T postgres sh -c 'set -e; sql=$(mktemp); trap "rm -f $sql" EXIT
    pg_restore --no-owner --file "$sql"
    psql --quiet --username mlflow --dbname mlflow -v ON_ERROR_STOP=1 --single-transaction --output /dev/null \
        -c "DROP SCHEMA public CASCADE" -c "CREATE SCHEMA public" -f "$sql"' < "$saved/mlflow.dump"
trap 'echo "restore: the database is back, the artifacts are not: run it again" >&2' ERR
compose run --rm -T mlflow sh -c 'cd /artifacts && rm -rf .before && mkdir .before
    find . -mindepth 1 -maxdepth 1 ! -name .before ! -name .restored -exec mv -t .before {} +
    find .restored -mindepth 1 -maxdepth 1 -exec mv -t . {} +
    rm -r .restored .before' < /dev/null
trap - ERR
compose up -d
echo "restore: done from $saved"
