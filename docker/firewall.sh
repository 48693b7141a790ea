#!/usr/bin/env bash
# Print, as commands for ufw, what the machines of a cluster must let in from each other: docker/firewall.sh NETWORK
# NETWORK is the lab's, such as 192.168.7.0/24. It changes nothing; the ports are those of .env.
set -euo pipefail
refuse() {
    echo "firewall: $1" >&2
    exit 2
}
[ $# = 1 ] || refuse "expected NETWORK, such as 192.168.7.0/24"
network=$1
byte='(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])'
# What is printed is pasted into a shell of root's.
[[ $network =~ ^$byte(\.$byte){3}(/(3[0-2]|[12]?[0-9]))?$ ||
    $network =~ ^[0-9A-Fa-f]*:[0-9A-Fa-f:]*:[0-9A-Fa-f]*(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?$ ]] ||
    refuse "$network: expected a network, such as 192.168.7.0/24"
. "$(dirname "$0")/stack.sh"
# Prints a port of .env, and without one there what compose takes; the last of its block must be one too.
port() { # NAME DEFAULT [OTHERS IN THE BLOCK]
    local first
    first=$(setting "$1")
    first=${first:-$2}
    if ! [[ $first =~ ^[1-9][0-9]{0,4}$ ]] || [ $((first + ${3:-0})) -gt 65535 ]; then
        refuse ".env: $1 is $first: expected a port up to $((65535 - ${3:-0}))"
    fi
    echo "$first"
}
allow() { echo "ufw allow proto tcp from $network to any port $1 comment '$2'"; }
block() { echo "$(($1 + 3)):$(($1 + 999))"; } # not the three for Prometheus
# All of them before the first line is printed: half of the rules look like all.
ray=$(port RAY_PORT 6379)
dashboard=$(port DASHBOARD_PORT 8265)
mlflow=$(port MLFLOW_PORT 5000)
head=$(port HEAD_PORTS 20000 999)
cpu=$(port CPU_PORTS 21000 999)
gpu=$(port GPU_PORTS 22000 999)
echo "# the first machine"
allow "$ray" "Ray: cluster"
allow "$dashboard" "Ray: jobs, dashboard"
allow "$mlflow" "MLflow"
allow "$(block "$head")" "Ray: head"
echo "# every machine with a worker"
allow "$(block "$cpu")" "Ray: CPU worker"
allow "$(block "$gpu")" "Ray: GPU worker"
