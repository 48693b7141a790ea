#!/usr/bin/env bash
# Make what the stack needs beside its files: .env, the storage directory, and secrets with random content.
# Nothing that is there is changed: run it as often as you like.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -e .env ]; then
    memory=$(awk '/^MemTotal:/ {print int($2 * 3 / 4096)}' /proc/meminfo)
    sed -e "s|^IDP_UID=.*|IDP_UID=$(id -u)|" -e "s|^IDP_GID=.*|IDP_GID=$(id -g)|" \
        -e "s|^IDP_STORAGE=.*|IDP_STORAGE=$PWD/idp-storage|" -e "s|^NODE_MEMORY=.*|NODE_MEMORY=${memory}m|" .env.example > .env
    echo "made .env: read it, it is short"
fi
. docker/stack.sh
uid=$(setting IDP_UID) gid=$(setting IDP_GID) storage=$(setting IDP_STORAGE)
if [ "$uid" = 0 ]; then
    echo "secrets: .env: IDP_UID is 0: expected the number of an ordinary user; the containers do not run as root" >&2
    exit 2
fi

# Docker would make a missing directory itself, owned by root.
mkdir -p docker/secrets "$storage"
chmod 700 docker/secrets
for name in ray_token postgres_password mlflow_admin_password mlflow_password mlflow_flask_key; do
    file=docker/secrets/$name
    if [ ! -e "$file" ]; then
        (umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' > "$file")
        echo "made $file"
    fi
done
if [ "$(id -u)" = 0 ]; then
    chown "$uid:$gid" docker/secrets docker/secrets/* "$storage"
elif [ "$(id -u)" != "$uid" ]; then
    echo "secrets: .env: IDP_UID is $uid and you are $(id -u): the containers can't read your secrets;" \
        "run this as root, or set IDP_UID=$(id -u) and build the image again" >&2
    exit 2
fi
