# One image for the head, the workers and MLflow. BASE_IMAGE may be another distribution, as a CUDA image is: Python and
# every package come from PYTHON_IMAGE, so all nodes of a cluster have the same, which Ray demands.
ARG PYTHON_IMAGE=debian:12.12-slim
ARG BASE_IMAGE=debian:12.12-slim

FROM ${PYTHON_IMAGE} AS packages
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        python3.11 python3.11-venv python3.11-dev >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir /headers && cp -r --parents /usr/include/python3.11 /usr/include/*-linux-gnu/python3.11 /headers
RUN python3.11 -m venv /opt/idp
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python3.11 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['dependencies'], *p['optional-dependencies']['server'], 'hatchling', sep='\n')" > requirements.txt
# Where torch is found: its CPU index, or empty for the package index, whose torch brings its own CUDA libraries.
ARG TORCH_INDEX=
# 1: nothing but the wheels in docker/wheelhouse (`make wheelhouse`), for a machine without the internet.
ARG PIP_NO_INDEX=
RUN --mount=type=bind,source=docker/wheelhouse,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    /opt/idp/bin/pip install --quiet --disable-pip-version-check --find-links /wheels -c constraints.txt \
        ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "torch==$(sed -n 's/^torch==//p' constraints.txt)"
RUN --mount=type=bind,source=docker/wheelhouse,target=/wheels \
    --mount=type=cache,target=/root/.cache/pip \
    /opt/idp/bin/pip install --quiet --disable-pip-version-check --find-links /wheels -c constraints.txt \
        -r requirements.txt

FROM packages AS project
COPY README.md LICENSE ./
COPY datagen datagen
COPY planners planners
COPY orchestrator orchestrator
COPY sweeps sweeps
RUN /opt/idp/bin/pip wheel --quiet --no-deps --no-build-isolation --no-index -w /dist .

FROM ${BASE_IMAGE}
# The libraries that Python's own modules are linked to, a software renderer for MiniWorld, and the C compiler by which
# Triton makes the launchers of GPU kernels.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates \
        libbz2-1.0 libexpat1 libffi8 liblzma5 libncursesw6 libreadline8 libsqlite3-0 libssl3 libuuid1 zlib1g \
        libegl1 libgl1 libgl1-mesa-dri libglu1-mesa libopengl0 gcc libc6-dev >/dev/null \
    && rm -rf /var/lib/apt/lists/*
# The owner of what is written to the storage: the same number on every machine that mounts it.
ARG IDP_UID=1000
ARG IDP_GID=1000
RUN groupadd --non-unique --gid ${IDP_GID} idp \
    && useradd --non-unique --uid ${IDP_UID} --gid ${IDP_GID} --create-home --home-dir /home/idp idp \
    && install -d -o idp -g idp /home/idp/.cache /storage /artifacts
COPY --from=packages /usr/bin/python3.11 /usr/bin/
COPY --from=packages /usr/lib/python3.11 /usr/lib/python3.11
COPY --from=packages /headers /
COPY --from=packages /opt/idp /opt/idp
ENV PATH=/opt/idp/bin:$PATH HOME=/home/idp PYTHONUNBUFFERED=1 IDP_STORAGE=/storage \
    NUMBA_CACHE_DIR=/home/idp/.cache/numba TRITON_CACHE_DIR=/home/idp/.cache/triton MPLCONFIGDIR=/home/idp/.cache/matplotlib
# Fails here, not in a trial, where BASE_IMAGE lacks a library.
RUN HOME=/tmp/check python -c "import bz2, ctypes, curses, lzma, readline, sqlite3, ssl, uuid, zlib; \
    import mlflow, psycopg, ray, torch" && rm -rf /tmp/check \
    && echo '#include <Python.h>' | gcc -fsyntax-only -I /usr/include/python3.11 -x c -
COPY sweeps /srv/idp/sweeps
COPY docker/*.sh docker/*.py /srv/idp/docker/
RUN --mount=type=bind,from=project,source=/dist,target=/dist \
    pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps --no-index /dist/*.whl
WORKDIR /srv/idp
USER idp
ENTRYPOINT ["/srv/idp/docker/entrypoint.sh"]
CMD ["bash"]
