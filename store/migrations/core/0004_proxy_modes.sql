-- What a proxy's gRPC port shows is said per proxy, and an empty grpc_tls leaves
-- it to core's settings. Until now nothing else was ever stored, under the name
-- of what those settings mean without --proxy-grpc-ca.
UPDATE components SET grpc_tls = '' WHERE grpc_tls = 'internal';
