#!/usr/bin/env bash
# Back up what the stack can't make again, while it runs: docker/backup.sh FOLDER [--without-storage]
# FOLDER gets MLflow's database and artifacts, the storage (unless your file server backs it up), .env, the secrets, and
# the checksums by which docker/restore.sh knows that all of it is whole.
set -euo pipefail
target=$(realpath -m "${1:?usage: docker/backup.sh FOLDER [--without-storage]}")
. "$(dirname "$0")/stack.sh"
if [ -e "$target" ]; then
    echo "backup: $target is there already: name a new folder" >&2
    exit 2
fi
storage=$(setting IDP_STORAGE)
above=$target
while [ "$above" != / ]; do
    above=$(dirname "$above")
    # Every job can read what is there, and the next backup would hold this one.
    [ ! "$above" -ef "$storage" ] || {
        echo "backup: $target is in the storage, $storage: name a folder outside, for the secrets' sake" >&2
        exit 2
    }
done
umask 077
part=$target.part
# A full disk would otherwise stay full.
trap 'rm -rf "$part"' EXIT
rm -rf "$part"
mkdir -p "$part"
compose exec -T postgres pg_dump --username mlflow --format custom mlflow > "$part/mlflow.dump"
compose exec -T mlflow tar -C /artifacts --exclude ./.restored --exclude ./.before -cf - . > "$part/artifacts.tar"
if [ "${2:-}" != --without-storage ]; then
    # 1: a file changed meanwhile. Trials replace their files whole, so that is a file from before or after.
    tar -C "$storage" --exclude ./.restored -cf "$part/storage.tar" . || [ $? = 1 ]
fi
cp -p .env "$part/env"
cp -rp docker/secrets "$part/secrets"
(cd "$part" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS)
sync -f "$part"
mv "$part" "$target"
echo "backup: $(du -sh "$target" | cut -f1) in $target; it holds the secrets: keep it as safe as them"
