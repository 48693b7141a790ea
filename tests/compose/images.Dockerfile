# Stands in for the official postgres image where that can't be pulled: Debian's PostgreSQL behind the same contract
# (POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD_FILE, data in /var/lib/postgresql/data, passwords over TCP).
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql gosu >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o postgres -g postgres /var/lib/postgresql/data /run/postgresql
COPY postgres-entrypoint.sh /
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["/postgres-entrypoint.sh"]
