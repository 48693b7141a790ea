#!/usr/bin/env bash
# What a container of the image does: ray-head, ray-worker, mlflow, mlflow-upgrade, or any command.
set -euo pipefail

readable() {
    if [ ! -r "$1" ]; then
        echo "entrypoint: can't read $1 as user $(id -u): its owner must be IDP_UID of .env; \`make secrets\` sees to it" >&2
        exit 2
    fi
}

# Passwords go into the environment here, so that neither `docker inspect` nor a compose file has them.
if [ -n "${MLFLOW_TRACKING_URI:-}" ]; then
    readable /run/secrets/mlflow_password
    MLFLOW_TRACKING_USERNAME=idp
    MLFLOW_TRACKING_PASSWORD=$(cat /run/secrets/mlflow_password)
    export MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
fi

# Every port of a Ray node lies in one block of 1,000. The first three are numbers for Prometheus, which ask for no token:
# docker/firewall.sh lets the others in.
ray_node() {
    local first=$NODE_PORTS
    readable "$RAY_AUTH_TOKEN_PATH"
    case ${NODE_ADDRESS:-} in
    127.* | localhost) # Ray would put another of the machine's addresses in its place
        echo "entrypoint: .env: BIND_ADDRESS is $NODE_ADDRESS: with compose.worker.yml it must be this machine's own" \
            "address in the lab; for one machine alone, use docker-compose.yml" >&2
        exit 2
        ;;
    esac
    export AUTOSCALER_METRIC_PORT=$((first + 1)) DASHBOARD_METRIC_PORT=$((first + 2))
    exec ray start --block --disable-usage-stats ${NODE_ADDRESS:+--node-ip-address "$NODE_ADDRESS"} \
        --metrics-export-port "$first" --node-manager-port $((first + 3)) --object-manager-port $((first + 4)) \
        --runtime-env-agent-port $((first + 5)) --dashboard-agent-listen-port $((first + 6)) \
        --dashboard-agent-grpc-port $((first + 7)) --min-worker-port $((first + 10)) --max-worker-port $((first + 999)) \
        --object-store-memory $((OBJECT_STORE_MB * 1024 * 1024)) "$@"
}

case "${1:-}" in
ray-head)
    # No CPUs: trials run on workers, the head only has the drivers of jobs.
    ray_node --head --port "$RAY_PORT" --num-cpus 0 --num-gpus 0 \
        --dashboard-host "${DASHBOARD_HOST:-0.0.0.0}" --dashboard-port "$DASHBOARD_PORT" \
        --ray-client-server-port $((NODE_PORTS + 8))
    ;;
ray-worker)
    # Back at its address before the head has missed five health checks of its old self, a worker is lent trials over a
    # connection that still fails, and Ray 2.60 counts its processors as taken from then on: no trial runs there again.
    if [ -e /tmp/ray ]; then
        echo "entrypoint: this worker ran here before; it joins in 30 s, when the head has given that one up"
        sleep 30 &
        wait $! # where a signal ends it, as `docker compose stop` expects
    fi
    ray_node --address "$HEAD_ADDRESS:$RAY_PORT" \
        ${NODE_CPUS:+--num-cpus "$NODE_CPUS"} ${NODE_GPUS:+--num-gpus "$NODE_GPUS"}
    ;;
mlflow | mlflow-upgrade)
    for name in postgres_password mlflow_admin_password mlflow_password mlflow_flask_key; do
        readable "/run/secrets/$name"
    done
    # The password goes into a file that libpq reads, not into the address, which turns up in logs and `ps`.
    umask 077
    export PGPASSFILE=/tmp/pgpass MLFLOW_AUTH_CONFIG_PATH=/tmp/basic_auth.ini
    echo "postgres:5432:*:mlflow:$(cat /run/secrets/postgres_password)" > "$PGPASSFILE"
    database=postgresql+psycopg://mlflow@postgres:5432/mlflow
    printf '[mlflow]\ndefault_permission = READ\nadmin_username = admin\ndatabase_uri = %s\n%s\n' "$database" \
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth" > "$MLFLOW_AUTH_CONFIG_PATH"
    if [ "$1" = mlflow-upgrade ]; then
        exec mlflow db upgrade "$database"
    fi
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat /run/secrets/mlflow_flask_key)
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
