#!/usr/bin/env bash
# An authority of one's own and a certificate of it, where the lab has none: docker/certificate.sh NAME_OR_ADDRESS...
# Into docker/secrets/tls: server.crt and server.key are the server's, authority.crt is for users. Never overwritten.
set -euo pipefail
refuse() {
    echo "certificate: $1" >&2
    exit 2
}
[ $# -gt 0 ] || {
    echo "usage: docker/certificate.sh NAME_OR_ADDRESS..., by which users know this machine" >&2
    exit 2
}
command -v openssl > /dev/null || refuse "no openssl here: apt-get install openssl"
secrets=$(dirname "$0")/secrets
[ -d "$secrets" ] || refuse "no docker/secrets: \`make secrets\` makes it"
cd "$secrets"
[ ! -e tls ] || refuse "docker/secrets/tls is there already: remove it for new ones"
byte='(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])'
label='[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?'
names=
for name in "$@"; do
    kind=IP address=$name
    [[ $name != \[*\] ]] || address=${name:1:-1} # as it stands in an address of the web
    if [[ $address =~ ^[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*$ ]]; then
        : # the sixth version: openssl knows whether it is one
    elif [[ $name =~ ^[0-9.]+$ ]]; then
        [[ $name =~ ^$byte\.$byte\.$byte\.$byte$ ]] || refuse "$name: expected four numbers up to 255 in an address"
    elif [[ $name =~ ^(\*\.)?$label(\.$label)*$ ]] && [ ${#name} -le 253 ]; then
        kind=DNS
    else
        refuse "$name: expected a host's name or address, without a port"
    fi
    names+="${names:+,}$kind:$address"
done
umask 077
part=$(mktemp -d tls.XXXXXX)
trap 'rm -rf "$part"' EXIT
# The names are in subjectAltName alone, where clients look: the subject takes 64 characters.
if ! {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=idp authority" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
        -keyout "$part/authority.key" -out "$part/authority.crt" &&
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=idp" -keyout "$part/server.key" |
        openssl x509 -req -days 825 -CA "$part/authority.crt" -CAkey "$part/authority.key" -CAcreateserial \
            -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") -out "$part/server.crt"
} 2> "$part/said"; then
    cat "$part/said" >&2
    refuse "openssl makes none for $*, as it says above"
fi
# Whoever had it could make certificates that users of this one trust; a new one is made with a new authority.
rm -f "$part/authority.key" "$part/said" "$part"/*.srl
[ "$(id -u)" != 0 ] || chown -R --reference=. "$part"
mv -T "$part" tls
trap - EXIT
echo "certificate: docker/secrets/tls, for $*; give docker/secrets/tls/authority.crt to the users"
