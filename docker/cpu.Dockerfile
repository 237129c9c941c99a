# The server on the CPU backend, with the two bundled models.
#
#   docker build -f docker/cpu.Dockerfile -t sensorium .
#   docker run --rm -p 50051:50051 sensorium
#   docker run --rm -p 50051:50051 -v /path/to/deployment:/config:ro sensorium \
#     serve --config /config/serve.yaml
FROM debian:12 AS build
WORKDIR /src
COPY docker/install-deps.sh docker/install-deps.sh
RUN bash docker/install-deps.sh
COPY . .
# /image/lib: the shared libraries the binary names, apart from those every Debian image has.
RUN cmake -S . -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DSENSORIUM_TESTS=OFF -DSENSORIUM_BENCHMARKS=OFF \
 && cmake --build /build --target sensorium \
 && strip /build/server/sensorium \
 && mkdir -p /image/lib /image/bin /image/share/sensorium \
 && cp /build/server/sensorium /image/bin/ \
 && cp -r config /image/share/sensorium/ \
 && ldd /build/server/sensorium | awk '$3 ~ /^\// {print $3}' | sort -u \
  | grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv)\.so' | xargs -I{} cp -L {} /image/lib/

FROM debian:12-slim
COPY --from=build /image/ /usr/local/
RUN ldconfig && useradd --system --uid 10001 --no-create-home sensorium
USER 10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["/usr/local/bin/sensorium", "probe", "127.0.0.1:50051"]
ENTRYPOINT ["/usr/local/bin/sensorium"]
CMD ["serve", "--config", "/usr/local/share/sensorium/config/demo.yaml"]
