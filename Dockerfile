# docker build -t svcproxy:0.1.0 .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/ requirements/
# What the daemon runs with, and nothing else, goes into /opt/venv.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r requirements/runtime.lock
# The build backend is pinned by hash only in the development lock; its environment stays here.
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/dev.lock
COPY pyproject.toml README.md ./
COPY svcproxy/ svcproxy/
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-deps --no-index /dist/*.whl

FROM ${BASE}
# Debian's iptables brings both variants, nft and legacy; kmod is for the init container.
RUN apt-get update \
    && apt-get install -y --no-install-recommends iptables kmod \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
ENTRYPOINT ["/opt/venv/bin/svcproxy"]
