# docker build -t svcproxy:0.1.0 .
#
# tests/image builds this very file (with buildah) and runs the daemon from the result.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
# All that the daemon runs: its interpreter and both variants of iptables. The kernel's connection
# tracking, sets and nf_tables it asks over netlink. kmod loads modules, for the privileged init
# container only.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 iptables kmod \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/*

FROM system AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv
WORKDIR /src
COPY requirements/ requirements/
# Wheels only: there is no compiler in any stage. Byte code comes last, and only of what is loaded;
# the asyncio half of the API client, 40 MB, is not even there.
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: \
        --requirement requirements/build.lock \
    && python3 -m venv --without-pip /opt/svcproxy \
    && /opt/build/bin/pip --python /opt/svcproxy/bin/python install --no-cache-dir --no-compile \
        --require-hashes --only-binary :all: --requirement requirements/runtime.lock \
    && rm -r /opt/svcproxy/lib/python3*/site-packages/kubernetes/aio
COPY pyproject.toml README.md ./
COPY svcproxy/ svcproxy/
COPY image/ image/
RUN /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/svcproxy/bin/python install --no-compile --no-deps \
        --no-index /dist/*.whl \
    && /opt/svcproxy/bin/python image/compile_loaded.py

FROM system
COPY --from=build /opt/svcproxy /opt/svcproxy
# Under kube-proxy's name, too: kubeadm's DaemonSet then needs another image and nothing else.
RUN ln -s /opt/svcproxy/bin/svcproxy /usr/local/bin/svcproxy \
    && ln -s /opt/svcproxy/bin/svcproxy /usr/local/bin/kube-proxy
# Root, because the kernel checks CAP_NET_ADMIN of the process, and a pod cannot give capabilities
# to another user (ambient capabilities); the DaemonSet takes everything else away.
ENTRYPOINT ["/usr/local/bin/svcproxy"]
