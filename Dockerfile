# Feeder and worker in one image: `feeder` and `worker` are commands of its entry point. docs/container.md
#
#   docker build --tag nommerd .     (or: podman build --format docker --tag nommerd .)

ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
# another package index than PyPI; it stays in this stage
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-venv \
    && python3 -m venv /opt/nommerd
WORKDIR /build
COPY setup.py pyproject.toml MANIFEST.in README.md CHANGELOG.md LICENSE ./
COPY conf conf
COPY deploy deploy
COPY nommerd nommerd
# pinned as everywhere; nothing of the installer goes along
RUN /opt/nommerd/bin/pip install --quiet --no-cache-dir --constraint deploy/ami/constraints.txt . \
    && /opt/nommerd/bin/pip uninstall --quiet --yes setuptools pip


FROM ${BASE}
# tini: ffmpeg's orphans are reaped, and signals arrive, whatever runs the container. Of what ffmpeg brings, what draws on
# screens by software is a quarter, and is loaded when a window opens: never here.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates ffmpeg python3 tini \
    && rm -rf /usr/lib/*/libLLVM-*.so* /usr/lib/llvm-* /usr/lib/*/libz3.so* /usr/lib/*/dri/*_dri.so \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old \
    && ffmpeg -hide_banner -loglevel error -f lavfi -i testsrc=d=1 -c:v libx264 -f null -
# 1000 is the first user of most machines: media folders that are bind-mounted mostly belong to it
RUN groupadd --gid 1000 nommerd \
    && useradd --uid 1000 --gid nommerd --home-dir /var/lib/nommerd --no-create-home --shell /usr/sbin/nologin nommerd \
    && install -d -o nommerd -g nommerd -m 700 /var/lib/nommerd \
    && install -d -o nommerd -g nommerd -m 2775 /srv/media \
    && install -d /etc/nommerd/pipelines /etc/nommerd/presets \
    && ln -s /opt/nommerd/bin/nommerd /usr/local/bin/nommerd
COPY deploy/ami/files/nommerd.yaml /etc/nommerd/nommerd.yaml
COPY deploy/container/health.py /usr/local/lib/nommerd/health.py
COPY --from=build /opt/nommerd /opt/nommerd

# XDG_DATA_HOME: client commands in the container find the token. 0.0.0.0: only what is published leads here.
ENV HOME=/var/lib/nommerd XDG_DATA_HOME=/var/lib LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
    NOMMERD_API__HOST=0.0.0.0 NOMMERD_API__HOSTS='["localhost", "127.0.0.1", "feeder"]'
LABEL org.opencontainers.image.title="nommerd" org.opencontainers.image.licenses="BSD-3-Clause"
# by number: Kubernetes' runAsNonRoot wants to see that it is not 0
USER 1000:1000
WORKDIR /var/lib/nommerd
EXPOSE 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python3", "-I", "/usr/local/lib/nommerd/health.py"]
ENTRYPOINT ["tini", "--", "nommerd"]
CMD ["feeder", "--log", "json"]
