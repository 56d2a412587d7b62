# syntax=docker/dockerfile:1
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN .ci/build /out/sallyport "${VERSION}" \
 && mkdir -m 0700 /out/state

# Nothing but the binary and a directory for its state. The binary embeds the
# public roots, so that there is no file of certificates to keep up to date.
FROM scratch
COPY --from=build /out/sallyport /sallyport
COPY --from=build --chown=65532:65532 /out/state /var/lib/sallyport
USER 65532:65532
ENV SALLYPORT_DATA_DIR=/var/lib/sallyport \
    SALLYPORT_HEALTH_ADDRESS=:8080
VOLUME /var/lib/sallyport
EXPOSE 80 443 8080 8443 50051 50055
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["/sallyport", "health"]
ENTRYPOINT ["/sallyport"]
