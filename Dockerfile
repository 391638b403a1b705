# One image with every program: sidecar, broker, collector, injector, and the command line.
# How to build it, and what is in it: docs/how-to/build-the-image.md.

# A Debian with python3 (3.11 or later), its venv module and ca-certificates. Without a digest
# there is no build: what a tag names changes.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
ARG BASE_DIGEST

# --- build: everything that is needed to make the tree, none of which is in the image -------------

FROM ${BASE}@${BASE_DIGEST} AS build
SHELL ["/bin/sh", "-euc"]
# A base with Debian's own Python needs python3-dev and python3-venv besides.
ARG BUILD_PACKAGES="gcc libc6-dev"
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99-build \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ${BUILD_PACKAGES}

WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PYTHONHASHSEED=0
# What is installed is pinned and hashed, and built by others only as wheels. The compiler wants to
# know the types of what the programs import, and so looks there as well.
COPY requirements/ requirements/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/build; \
    python3 -m venv --without-pip /opt/valetkey; \
    /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/image.txt; \
    /opt/build/bin/pip --python /opt/valetkey/bin/python install --no-compile --require-hashes \
        --only-binary :all: -r requirements/runtime.txt; \
    echo /opt/valetkey/lib/python3.*/site-packages \
        > "$(echo /opt/build/lib/python3.*/site-packages)/valetkey.pth"

# The broker's directory.ldap, where it is asked for: compiled on the base's libldap, so no wheel.
ARG LDAP_PACKAGES=""
RUN --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99-build \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem \
    [ -n "${LDAP_PACKAGES}" ] || exit 0; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ${LDAP_PACKAGES}; \
    /opt/build/bin/pip wheel --require-hashes --no-deps --no-build-isolation --wheel-dir /opt/wheel \
        -r requirements/ldap.txt; \
    /opt/build/bin/pip --python /opt/valetkey/bin/python install --no-compile --no-index --no-deps \
        --find-links /opt/wheel python-ldap

# The data path is compiled (docs/adr/0009).
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY valetkey/ valetkey/
RUN export HATCH_BUILD_HOOK_ENABLE_CUSTOM=true; \
    /opt/build/bin/python -m hatchling build --target wheel --directory /opt/wheel; \
    /opt/build/bin/pip --python /opt/valetkey/bin/python install --no-compile --no-index --no-deps \
        --find-links /opt/wheel valetkey

COPY image/ image/
ARG SOURCE_DATE_EPOCH=0
RUN export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH}"; \
    python3 -m image.rootfs /opt/valetkey /out; \
    version="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' valetkey/__init__.py)"; \
    /opt/build/bin/cyclonedx-py environment --spec-version 1.6 --output-format JSON \
        --output-reproducible /opt/valetkey/bin/python > /tmp/environment.json; \
    /opt/build/bin/python -m image.sbom /out/packages.json "${version}" \
        /out/valetkey/usr/share/valetkey/sbom.cdx.json < /tmp/environment.json; \
    find /out/valetkey/usr -exec touch --no-dereference --date="@${SOURCE_DATE_EPOCH}" {} +

# --- the image: no shell, no package manager, no compiler -----------------------------------------

FROM scratch
COPY --from=build /out/system/ /
COPY --from=build /out/libraries/ /
COPY --from=build /out/valetkey/ /

# Nothing is imported from the working directory, and nothing is written beside the sources.
ENV PATH=/opt/valetkey/bin LANG=C.UTF-8 PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
USER 64707:64707
WORKDIR /
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python3", "-m", "valetkey.cli.health"]
# As the chart and the injector start programs: python3 -m valetkey.broker --config FILE. This is the
# sidecar's entry, which imports nothing of the others.
ENTRYPOINT ["python3", "-m"]
CMD ["valetkey.proxy", "--config", "/etc/valetkey/proxy.yaml"]

ARG BASE
ARG BASE_DIGEST
ARG VERSION
ARG REVISION
ARG CREATED
ARG SOURCE
LABEL org.opencontainers.image.title="Valetkey" \
      org.opencontainers.image.description="Sidecar authorization proxy, with broker, audit collector and injector" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
