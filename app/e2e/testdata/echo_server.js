// An upstream written with @grpc/grpc-js: foreign.v1.Echo, all four call kinds,
// raw bytes. usage: node echo_server.js PORTFILE KEY CERT CA: TLS with client
// authentication required.
'use strict';
const fs = require('fs');
const { createRequire } = require('module');
const grpc = createRequire(process.env.NODE_MODULES_ROOT + '/')('@grpc/grpc-js');

const [portfile, key, cert, ca] = process.argv.slice(2);
const same = (b) => b;
const method = (name, requestStream, responseStream) => ({
  path: '/foreign.v1.Echo/' + name, requestStream, responseStream,
  requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same,
});
const service = {
  unary: method('Unary', false, false), serverStream: method('ServerStream', false, true),
  clientStream: method('ClientStream', true, false), bidi: method('Bidi', true, true),
};
const server = new grpc.Server();
server.addService(service, {
  unary(call, callback) {
    const trailer = new grpc.Metadata();
    trailer.set('x-trailing', 'py');
    if (call.request.toString() === 'fail') {
      callback({ code: grpc.status.FAILED_PRECONDITION, details: 'asked to fail: 100% \u00e9', metadata: trailer });
      return;
    }
    callback(null, Buffer.from(call.request + '|' + (call.metadata.get('sallyport-caller')[0] || '-')), trailer);
  },
  serverStream(call) {
    for (let i = 0; i < Number(call.request.toString()); i++) call.write(Buffer.from(String(i)));
    call.end();
  },
  clientStream(call, callback) {
    const got = [];
    call.on('data', (d) => got.push(d.toString()));
    call.on('end', () => callback(null, Buffer.from(got.join(','))));
  },
  bidi(call) {
    call.on('data', (d) => call.write(Buffer.from(d.toString().toUpperCase())));
    call.on('end', () => call.end());
  },
});
const creds = grpc.ServerCredentials.createSsl(fs.readFileSync(ca),
  [{ private_key: fs.readFileSync(key), cert_chain: fs.readFileSync(cert) }], true);
server.bindAsync('127.0.0.1:0', creds, (err, port) => {
  if (err) throw err;
  fs.writeFileSync(portfile + '.tmp', String(port));
  fs.renameSync(portfile + '.tmp', portfile);
});
