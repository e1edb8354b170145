# The agent's image. Everything is built in the first stage; the second has no compiler, no pip and no build tools.
# Build it with `make image`, which also says what it was built from (kube2iam --version).

ARG PYTHON=3.11

FROM docker.io/library/python:${PYTHON}-slim-bookworm AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# setuptools by its hash, for what comes as source; then every dependency by its hash, as wheels.
COPY requirements.lock requirements-dev.lock ./
RUN awk '/^[a-z]/ { wanted = /^setuptools==/ } wanted' requirements-dev.lock > setuptools.lock \
 && pip install --no-deps --require-hashes -r setuptools.lock \
 && pip wheel --no-deps --require-hashes --no-build-isolation --wheel-dir /wheels -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY kube2iam ./kube2iam
ARG COMMIT=unknown
ARG DATE=unknown
RUN sed -i "s|^COMMIT = .*|COMMIT = \"${COMMIT}\"|; s|^DATE = .*|DATE = \"${DATE}\"|" kube2iam/_build.py \
 && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# Two libraries bring far more than the agent uses: descriptions of every service of AWS (it calls STS; its credential
# chain may call IAM Identity Center) and typed models of every Kubernetes object (it reads raw JSON).
RUN python -m venv --without-pip /opt/kube2iam \
 && pip --python /opt/kube2iam/bin/python install --no-deps --no-index /wheels/*.whl \
 && cd /opt/kube2iam/lib/python*/site-packages \
 && find botocore/data -mindepth 1 -maxdepth 1 -type d \
      ! -name sts ! -name iam ! -name 'sso*' ! -name signin -exec rm -rf {} + \
 && find kubernetes/client kubernetes/aio/client \( -path '*/api/*' -o -path '*/models/*' \) -type f \
      ! -name '__init__*' -delete

FROM docker.io/library/python:${PYTHON}-slim-bookworm
# nftables and iptables for the redirect.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends iptables nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/kube2iam /opt/kube2iam
ENV PATH=/opt/kube2iam/bin:$PATH PYTHONDONTWRITEBYTECODE=1
ARG COMMIT=unknown
ARG DATE=unknown
LABEL org.opencontainers.image.title="kube2iam" \
      org.opencontainers.image.description="AWS IAM roles for Kubernetes pods, through the EC2 metadata address" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${DATE}"
EXPOSE 8181
ENTRYPOINT ["kube2iam"]
