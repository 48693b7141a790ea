# Sourced by the scripts beside it: compose as it is called here, and the settings of .env.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -e .env ]; then
    echo "$(basename "$0"): no .env: \`make secrets\` makes it" >&2
    exit 2
fi
compose() {
    if docker compose version > /dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}
# As compose reads it: the quotes around a value and the comment after it are no part of it.
setting() {
    sed -n "s|^$1=||p" .env | tail -n 1 |
        sed -E "s/^(['\"])(.*)\1([[:space:]].*)?$/\2/; t; s/(^|[[:space:]])#.*//; s/[[:space:]]+$//"
}
