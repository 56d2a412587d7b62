"""An upstream written with grpcio: foreign.v1.Echo, all four call kinds.

Messages are raw bytes, so that no generated code is needed. usage:
echo_server.py PORTFILE KEY CERT CA: TLS with client authentication required.
"""
import os
import sys
from concurrent import futures

import grpc

portfile, keyfile, certfile, cafile = sys.argv[1:5]


def caller(context):
    for key, value in context.invocation_metadata():
        if key == "sallyport-caller":
            return value.encode()
    return b"-"


def unary(request, context):
    context.send_initial_metadata((("x-initial", "py"),))
    context.set_trailing_metadata((("x-trailing", "py"), ("x-trailing-bin", b"\x00\xff")))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "asked to fail: 100% \u00e9")
    return request + b"|" + caller(context)


def server_stream(request, context):
    for i in range(int(request)):
        yield b"%d" % i


def client_stream(requests, context):
    return b",".join(requests)


def bidi(requests, context):
    for request in requests:
        yield request.upper()


def read(path):
    with open(path, "rb") as f:
        return f.read()


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("foreign.v1.Echo", handlers),))
creds = grpc.ssl_server_credentials([(read(keyfile), read(certfile))], read(cafile), require_client_auth=True)
port = server.add_secure_port("127.0.0.1:0", creds)
server.start()
with open(portfile + ".tmp", "w") as f:
    f.write(str(port))

os.rename(portfile + ".tmp", portfile)
server.wait_for_termination()
