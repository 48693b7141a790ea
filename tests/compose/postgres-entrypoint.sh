#!/bin/bash
set -euo pipefail
export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) PGDATA=/var/lib/postgresql/data
as_postgres() { gosu postgres env PATH="$PATH" PGDATA="$PGDATA" "$@"; }
chown postgres:postgres "$PGDATA"
chmod 700 "$PGDATA"
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    gosu postgres tee /tmp/password < "$POSTGRES_PASSWORD_FILE" > /dev/null
    as_postgres initdb --encoding UTF8 --locale C.UTF-8 --username "$POSTGRES_USER" --pwfile /tmp/password --auth-local trust --auth-host scram-sha-256 >/dev/null
    rm /tmp/password
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    as_postgres pg_ctl start --wait --silent --options "-c listen_addresses= -k /tmp"
    as_postgres createdb --host /tmp --username "$POSTGRES_USER" "$POSTGRES_DB"
    as_postgres pg_ctl stop --wait --silent
fi
exec gosu postgres env PATH="$PATH" postgres -c listen_addresses='*' -c unix_socket_directories=/run/postgresql
