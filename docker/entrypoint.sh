#!/usr/bin/env bash
# What a container of the image does: ray-head, ray-worker, mlflow, mlflow-upgrade, or any command.
set -euo pipefail

secret() { cat "/run/secrets/$1"; }

# Passwords go into the environment here, so that neither `docker inspect` nor a compose file has them.
if [ -r /run/secrets/mlflow_password ] && [ -n "${MLFLOW_TRACKING_URI:-}" ]; then
    MLFLOW_TRACKING_USERNAME=idp
    MLFLOW_TRACKING_PASSWORD=$(secret mlflow_password)
    export MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
fi

# Every port of a Ray node lies in one block of 1,000, so that a firewall needs one rule a node (docker/firewall.sh).
ray_node() {
    local first=$1
    shift
    if [ ! -r "${RAY_AUTH_TOKEN_PATH:-}" ]; then
        echo "entrypoint: can't read the token ${RAY_AUTH_TOKEN_PATH:-(RAY_AUTH_TOKEN_PATH is not set)} as user" \
            "$(id -u): its owner must be IDP_UID of .env (\`make secrets\` sees to it)" >&2
        exit 2
    fi
    exec ray start --block --disable-usage-stats ${NODE_ADDRESS:+--node-ip-address "$NODE_ADDRESS"} \
        --node-manager-port "$first" --object-manager-port $((first + 1)) --runtime-env-agent-port $((first + 2)) \
        --dashboard-agent-listen-port $((first + 3)) --dashboard-agent-grpc-port $((first + 4)) \
        --metrics-export-port $((first + 5)) --min-worker-port $((first + 10)) --max-worker-port $((first + 999)) \
        --object-store-memory $((OBJECT_STORE_MB * 1024 * 1024)) "$@"
}

case "${1:-}" in
ray-head)
    # No CPUs: trials run on workers, the head only has the drivers of jobs.
    ray_node "$NODE_PORTS" --head --port "$RAY_PORT" --num-cpus 0 --num-gpus 0 \
        --dashboard-host "${DASHBOARD_HOST:-0.0.0.0}" --dashboard-port "$DASHBOARD_PORT" \
        --ray-client-server-port $((NODE_PORTS + 6))
    ;;
ray-worker)
    ray_node "$NODE_PORTS" --address "$HEAD_ADDRESS:$RAY_PORT" \
        ${NODE_CPUS:+--num-cpus "$NODE_CPUS"} ${NODE_GPUS:+--num-gpus "$NODE_GPUS"}
    ;;
mlflow | mlflow-upgrade)
    # The password goes into a file that libpq reads, not into the address, which turns up in logs and `ps`.
    umask 077
    export PGPASSFILE=/tmp/pgpass MLFLOW_AUTH_CONFIG_PATH=/tmp/basic_auth.ini
    echo "postgres:5432:*:mlflow:$(secret postgres_password)" > "$PGPASSFILE"
    database=postgresql+psycopg://mlflow@postgres:5432/mlflow
    printf '[mlflow]\ndefault_permission = READ\nadmin_username = admin\ndatabase_uri = %s\n%s\n' "$database" \
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth" > "$MLFLOW_AUTH_CONFIG_PATH"
    if [ "$1" = mlflow-upgrade ]; then
        exec mlflow db upgrade "$database"
    fi
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_flask_key)
    export MLFLOW_FLASK_SERVER_SECRET_KEY
    python /srv/idp/docker/mlflow_accounts.py "$database"
    exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 \
        --backend-store-uri "$database" --serve-artifacts --artifacts-destination /artifacts \
        --allowed-hosts "$MLFLOW_ALLOWED_HOSTS"
    ;;
*)
    exec "$@"
    ;;
esac
