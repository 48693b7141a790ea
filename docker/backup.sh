#!/usr/bin/env bash
# Back up what the stack can't make again, while it runs: docker/backup.sh FOLDER [--without-storage]
# FOLDER gets MLflow's database and artifacts, the storage (unless your file server backs it up), .env, the secrets, and
# the checksums by which docker/restore.sh knows that all of it is whole.
set -euo pipefail
refuse() {
    echo "backup: $1" >&2
    exit 2
}
if [ $# = 0 ] || [ $# -gt 2 ] || [[ $1 == -* ]]; then refuse "expected FOLDER [--without-storage]"; fi
[ "${2---without-storage}" = --without-storage ] || refuse "$2: expected --without-storage, or nothing"
target=$(realpath -m "$1")
. "$(dirname "$0")/stack.sh"
storage=$(setting IDP_STORAGE)
[ -d "$storage" ] || refuse ".env: IDP_STORAGE is $storage: expected a folder that is there"
[ ! -e "$target" ] || refuse "$target is there already: name a new folder"
above=$target
while [ "$above" != / ]; do
    above=$(dirname "$above")
    # Every job can read what is there, and the next backup would hold this one.
    [ ! "$above" -ef "$storage" ] || refuse "$target is in the storage, $storage: name a folder outside, for the secrets' sake"
done
umask 077
part=$target.part
# A full disk would otherwise stay full.
trap 'rm -rf "$part"' EXIT
rm -rf "$part"
mkdir -p "$part"
compose exec -T postgres pg_dump --username mlflow --format custom mlflow > "$part/mlflow.dump"
# 1: something changed meanwhile. Files are replaced whole, so that is one from before or after. In the container, since
# `docker compose` says 1 where there is none, too.
compose exec -T mlflow sh -c 'tar -C /artifacts --exclude ./.restored --exclude ./.before -cf - . || [ $? = 1 ]' \
    > "$part/artifacts.tar"
if [ $# = 1 ]; then
    tar -C "$storage" --exclude ./.restored -cf "$part/storage.tar" . || [ $? = 1 ]
fi
cp -p .env "$part/env"
cp -rp docker/secrets "$part/secrets"
(cd "$part" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)
sync -f "$part"
mv "$part" "$target"
echo "backup: $(du -sh "$target" | cut -f1) in $target; it holds the secrets: keep it as safe as them"
