# The image holds hsm-kms and Python, no PKCS#11 module: that one is mounted, with
# the glibc it was built for. BASE is any Debian or Ubuntu with Python 3.11 or later.
#
# The secrets `ca`, `pip.conf` and `apt.conf` are for builds behind a proxy or with an
# own package index, and no build needs them: see docs/install/containers.md.
ARG BASE=docker.io/library/debian:trixie-slim

# Bytecode is compared with its source, not with the time of its source, which
# SOURCE_DATE_EPOCH and tools that copy layers change. Python's own is made in the layer
# that installs it: a tool that looks for changes by size and time misses it in a later.
FROM ${BASE} AS system
RUN --mount=type=secret,id=ca,mode=0444 \
    --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99build,mode=0444 \
    apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && python3 -m compileall -q -f -j 0 --invalidation-mode checked-hash \
        /usr/lib/python3*/ /usr/share/python3

FROM system AS build
RUN --mount=type=secret,id=ca,mode=0444 \
    --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99build,mode=0444 \
    apt-get install --yes --no-install-recommends python3-venv
# pip and what builds the wheel have an environment of their own.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/hsm-kms
WORKDIR /src
COPY requirements/build.txt requirements/run.txt requirements/
RUN --mount=type=secret,id=ca,mode=0444 \
    --mount=type=secret,id=pip.conf,target=/etc/pip.conf,mode=0444 \
    /build/bin/pip --no-cache-dir install --require-hashes -r requirements/build.txt \
    && /build/bin/pip --no-cache-dir --python /opt/hsm-kms/bin/python install --no-compile \
        --only-binary :all: --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
# hsm_kms/manifests is a link to it.
COPY manifests manifests
COPY hsm_kms hsm_kms
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
    && /build/bin/pip --python /opt/hsm-kms/bin/python install --no-compile \
        --no-deps --no-index --find-links /wheel hsm-kms

FROM system AS root
COPY --from=build /opt/hsm-kms /opt/hsm-kms
ARG SOURCE_DATE_EPOCH
RUN --mount=type=bind,source=image,target=/mnt /mnt/finish.sh

# One layer: what was removed above is in no layer that somebody pulls.
FROM scratch AS runtime
ARG BASE
COPY --from=root / /
ENV PATH=/opt/hsm-kms/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="hsm-kms" \
    org.opencontainers.image.description="Kubernetes KMS provider whose key never leaves a PKCS#11 token" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="${BASE}"
USER 10001:10001
# A signal to process 1 is lost unless it is handled or blocked: it is blocked until
# Python has started, and hsm-kms unblocks it.
ENTRYPOINT ["env", "--block-signal=HUP,INT,TERM", "hsm-kms"]
CMD ["serve"]

# With SoftHSM2 and a token that its first start makes: for trials only.
FROM runtime AS dev
USER 0:0
ARG SOURCE_DATE_EPOCH
COPY softhsm /usr/share/hsm-kms/softhsm
COPY image/dev.sh /usr/share/hsm-kms/dev.sh
RUN --mount=type=secret,id=ca,mode=0444 \
    --mount=type=secret,id=apt.conf,target=/etc/apt/apt.conf.d/99build,mode=0444 \
    apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends softhsm2 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* \
    && rmdir /etc/hsm-kms \
    && ln -s /var/lib/hsm-kms /etc/hsm-kms
RUN --mount=type=bind,source=image,target=/mnt /mnt/finish.sh
USER 10001:10001
# An entry point of its own takes the inherited command away.
ENTRYPOINT ["/usr/share/hsm-kms/dev.sh"]
CMD ["serve"]

# What is built unless --target names another.
FROM runtime
