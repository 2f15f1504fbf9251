# The image of the sidecar: what requirements.lock names and Overcoat itself, run by a user without rights.
#
#   docker build -t overcoat .
#   docker run --rm -v "$PWD/policy:/etc/overcoat:ro" -p 127.0.0.1:8080:8080 overcoat
#
# The policy is /etc/overcoat/overcoat.yaml (OVERCOAT_POLICY), without which nothing starts: mount its folder, since an
# editor puts a new file in the place of the old one, and a mount of the file alone would go on showing that. The local
# CA is kept in the volume /var/lib/overcoat. A policy that says only `version: 1` is the built-in default, which listens
# on 127.0.0.1: right in a pod, or with `network_mode: service:…`.
#
# The image has 135 MB above its base's, most of them compiled: cryptography with OpenSSL (15), zstandard (23), mitmproxy
# with its Rust part (16), and what these depend on.

ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# Wheels only, and only those whose hashes are locked: nothing that was downloaded runs before the image does.
RUN python3 -m venv --without-pip /opt/overcoat \
 && python3 -m pip --python /opt/overcoat/bin/python install --no-cache-dir --disable-pip-version-check \
      --only-binary :all: --require-hashes -r requirements.lock \
 && python3 -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check \
      --only-binary :all: --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY overcoat overcoat
COPY proxy proxy
COPY addons addons
COPY config config
RUN /opt/build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /dist . \
 && python3 -m pip --python /opt/overcoat/bin/python install --no-cache-dir --disable-pip-version-check --no-deps \
      --no-index /dist/*.whl \
# Isolated (-I): neither a variable nor the working directory, where the policy is mounted, puts code on its path.
 && sed -i '1s|$| -IBu|' /opt/overcoat/bin/overcoat && head -n 1 /opt/overcoat/bin/overcoat | grep -qx '#!/opt/.*python[0-9.]* -IBu'

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Overcoat" \
      org.opencontainers.image.description="A sidecar proxy that an unmodified app wears like a coat: https only, pinned servers, encrypted JSON fields." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="python:3.13-slim"
COPY --from=build /opt/overcoat /opt/overcoat
# A number needs no entry in /etc/passwd, and Kubernetes can tell from it that the image does not run as root.
# A base image without root certificates would trust nobody: better found here than in production.
RUN install -d -m 0700 -o 10001 -g 10001 /var/lib/overcoat \
 && install -d -m 0755 -o 10001 -g 10001 /run/overcoat-ca \
 && install -d -m 0755 /etc/overcoat \
 && /opt/overcoat/bin/python -c "import ssl; assert ssl.create_default_context().get_ca_certs(), 'no root certificates'"
ENV PATH=/opt/overcoat/bin:$PATH \
    HOME=/var/lib/overcoat \
    OVERCOAT_DATA=/var/lib/overcoat \
    OVERCOAT_POLICY=/etc/overcoat/overcoat.yaml
WORKDIR /etc/overcoat
VOLUME /var/lib/overcoat
EXPOSE 8080 9464 9465
USER 10001:10001
# Times for a container that has a tenth of a processor, where a start takes long.
HEALTHCHECK --interval=5s --timeout=10s --start-period=60s --retries=3 CMD ["overcoat", "healthcheck"]
ENTRYPOINT ["overcoat"]
CMD ["serve"]
