# The image holds hsm-kms and Python, no PKCS#11 module: that one is mounted, with
# the glibc it was built for. BASE is any Debian or Ubuntu with Python 3.11 or later.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv
WORKDIR /src
COPY requirements/run.txt requirements/
RUN python3 -m venv /opt/hsm-kms \
    && /opt/hsm-kms/bin/pip install --no-cache-dir --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
# hsm_kms/manifests is a link to it.
COPY manifests manifests
COPY hsm_kms hsm_kms
RUN /opt/hsm-kms/bin/pip install --no-deps --no-build-isolation . \
    && /opt/hsm-kms/bin/pip uninstall --yes \
        hatchling editables packaging pathspec pluggy tomlkit trove-classifiers setuptools \
    && /opt/hsm-kms/bin/hsm-kms --version \
    && /opt/hsm-kms/bin/pip uninstall --yes pip

FROM ${BASE}
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/hsm-kms /opt/hsm-kms
ENV PATH=/opt/hsm-kms/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# A signal to process 1 is lost unless it is handled or blocked: it is blocked until
# Python has started, and hsm-kms unblocks it.
ENTRYPOINT ["env", "--block-signal=HUP,INT,TERM", "hsm-kms"]
CMD ["serve"]
