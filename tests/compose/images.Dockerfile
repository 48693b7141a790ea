# Stand in for the official images where those can't be pulled: Debian's programs behind the same contracts.
ARG BASE_IMAGE
FROM ${BASE_IMAGE} AS postgres
# POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD_FILE, data in /var/lib/postgresql/data, passwords over TCP.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql gosu >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o postgres -g postgres /var/lib/postgresql/data /run/postgresql
COPY postgres-entrypoint.sh /
VOLUME /var/lib/postgresql/data
STOPSIGNAL SIGINT
ENTRYPOINT ["/postgres-entrypoint.sh"]

FROM ${BASE_IMAGE} AS nginx
# nginx on the path for any user, and curl for the health check.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light curl >/dev/null \
    && rm -rf /var/lib/apt/lists/*
STOPSIGNAL SIGQUIT

FROM ${BASE_IMAGE} AS prometheus
# The command's words are prometheus's own, data in /prometheus, as nobody.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o nobody -g nogroup /prometheus
VOLUME /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
