#!/usr/bin/env bash
# An authority of one's own and a certificate of it, where the lab has none: docker/certificate.sh NAME_OR_ADDRESS...
# Into docker/secrets/tls: server.crt and server.key are the server's, authority.crt is for users. Never overwritten.
set -euo pipefail
[ $# -gt 0 ] || {
    echo "usage: docker/certificate.sh NAME_OR_ADDRESS..., by which users know this machine" >&2
    exit 2
}
cd "$(dirname "$0")/secrets"
if [ -e tls ]; then
    echo "certificate: docker/secrets/tls is there already: remove it for new ones" >&2
    exit 2
fi
names=
for name in "$@"; do
    [[ $name =~ ^[A-Za-z0-9.:-]+$ ]] || {
        echo "certificate: $name: expected a host's name or address" >&2
        exit 2
    }
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+="${names:+,}IP:$name"; else names+="${names:+,}DNS:$name"; fi
done
umask 077
part=$(mktemp -d tls.XXXXXX)
trap 'rm -rf "$part"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=idp authority" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
    -keyout "$part/authority.key" -out "$part/authority.crt" 2> /dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$part/server.key" 2> /dev/null |
    openssl x509 -req -days 825 -CA "$part/authority.crt" -CAkey "$part/authority.key" -CAcreateserial \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") -out "$part/server.crt" 2> /dev/null
# Whoever had it could make certificates that users of this one trust; a new one is made with a new authority.
rm -f "$part/authority.key" "$part"/*.srl
[ "$(id -u)" != 0 ] || chown -R --reference=. "$part"
mv -T "$part" tls
trap - EXIT
echo "certificate: docker/secrets/tls, for $*; give docker/secrets/tls/authority.crt to the users"
