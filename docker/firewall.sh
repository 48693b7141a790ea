#!/usr/bin/env bash
# Print, as commands for ufw, what the machines of a cluster must let in from each other: docker/firewall.sh NETWORK
# NETWORK is the lab's, such as 192.168.7.0/24. It changes nothing; the ports are those of .env.
set -euo pipefail
network=${1:?usage: docker/firewall.sh NETWORK, such as 192.168.7.0/24}
. "$(dirname "$0")/stack.sh"
allow() { echo "ufw allow proto tcp from $network to any port $1 comment '$2'"; }
block() { local first; first=$(setting "$1"); echo "$((first + 3)):$((first + 999))"; } # not the three for Prometheus
echo "# the first machine"
allow "$(setting RAY_PORT)" "Ray: cluster"
allow "$(setting DASHBOARD_PORT)" "Ray: jobs, dashboard"
allow "$(setting MLFLOW_PORT)" "MLflow"
allow "$(block HEAD_PORTS)" "Ray: head"
echo "# every machine with a worker"
allow "$(block CPU_PORTS)" "Ray: CPU worker"
allow "$(block GPU_PORTS)" "Ray: GPU worker"
