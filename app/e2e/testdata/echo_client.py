"""A client written with grpcio. usage: echo_client.py ADDRESS CA CERT KEY CALLER

Calls foreign.v1.Echo through the edge with a client certificate, all four
call kinds, and checks every answer. Exit status 0 and the line "ok" on success.
"""
import sys

import grpc

address, cafile, certfile, keyfile, want_caller = sys.argv[1:6]


def read(path):
    with open(path, "rb") as f:
        return f.read()


def check(got, want, what):
    if got != want:
        sys.exit("%s: got %r, want %r" % (what, got, want))


creds = grpc.ssl_channel_credentials(read(cafile), read(keyfile), read(certfile))
options = (("grpc.ssl_target_name_override", "localhost"),)
with grpc.secure_channel(address, creds, options) as channel:
    prefix = "/foreign.v1.Echo/"
    unary = channel.unary_unary(prefix + "Unary")
    response, call = unary.with_call(b"hello", timeout=10, metadata=(("x-data-bin", b"\x01\x02"),))
    check(response, b"hello|" + want_caller.encode(), "unary")
    check(dict(call.initial_metadata()).get("x-initial"), "py", "initial metadata")
    trailing = dict(call.trailing_metadata())
    check(trailing.get("x-trailing"), "py", "trailing metadata")
    check(trailing.get("x-trailing-bin"), b"\x00\xff", "binary trailing metadata")
    try:
        unary(b"fail", timeout=10)
        sys.exit("fail: no error")
    except grpc.RpcError as e:
        check(e.code(), grpc.StatusCode.FAILED_PRECONDITION, "code")
        check(e.details(), "asked to fail: 100% \u00e9", "details")
    got = list(channel.unary_stream(prefix + "ServerStream")(b"100", timeout=10))
    check(got, [b"%d" % i for i in range(100)], "server stream")
    got = channel.stream_unary(prefix + "ClientStream")(iter([b"a", b"b", b"c"]), timeout=10)
    check(got, b"a,b,c", "client stream")
    got = list(channel.stream_stream(prefix + "Bidi")(iter([b"x", b"y" * 100000]), timeout=10))
    check(got, [b"X", b"Y" * 100000], "bidi")
    try:
        channel.unary_unary("/foreign.v1.Echo/Forbidden")(b"", timeout=10)
        sys.exit("a method without a row was allowed")
    except grpc.RpcError as e:
        check(e.code(), grpc.StatusCode.PERMISSION_DENIED, "method without a row")
print("ok")
