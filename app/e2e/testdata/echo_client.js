// A client written with @grpc/grpc-js. usage: node echo_client.js ADDRESS CA CERT KEY CALLER
// Calls foreign.v1.Echo through the edge, all four call kinds, and prints "ok".
'use strict';
const fs = require('fs');
const { createRequire } = require('module');
const grpc = createRequire(process.env.NODE_MODULES_ROOT + '/')('@grpc/grpc-js');

const [address, ca, cert, key, caller] = process.argv.slice(2);
const same = (b) => b;
const method = (name, requestStream, responseStream) => ({
  path: '/foreign.v1.Echo/' + name, requestStream, responseStream,
  requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same,
});
const Echo = grpc.makeGenericClientConstructor({
  unary: method('Unary', false, false), serverStream: method('ServerStream', false, true),
  clientStream: method('ClientStream', true, false), bidi: method('Bidi', true, true),
}, 'foreign.v1.Echo');
const creds = grpc.credentials.createSsl(fs.readFileSync(ca), fs.readFileSync(key), fs.readFileSync(cert));
const client = new Echo(address, creds, { 'grpc.ssl_target_name_override': 'localhost' });
const options = () => ({ deadline: Date.now() + 10000 });

function check(got, want, what) {
  if (got !== want) { console.error(`${what}: got ${got}, want ${want}`); process.exit(1); }
}
const unary = (text) => new Promise((resolve, reject) =>
  client.unary(Buffer.from(text), new grpc.Metadata(), options(), (e, r) => e ? reject(e) : resolve(r.toString())));
const collect = (stream) => new Promise((resolve, reject) => {
  const got = [];
  stream.on('data', (d) => got.push(d.toString()));
  stream.on('end', () => resolve(got.join(',')));
  stream.on('error', reject);
});

(async () => {
  check(await unary('hello'), 'hello|' + caller, 'unary');
  try { await unary('fail'); check('no error', 'an error', 'fail'); } catch (e) {
    check(e.code, grpc.status.FAILED_PRECONDITION, 'code');
    check(e.details, 'asked to fail: 100% \u00e9', 'details');
    check(e.metadata.get('x-trailing')[0], 'py', 'trailer');
  }
  check(await collect(client.serverStream(Buffer.from('5'), new grpc.Metadata(), options())), '0,1,2,3,4', 'server stream');
  const joined = await new Promise((resolve, reject) => {
    const call = client.clientStream(new grpc.Metadata(), options(), (e, r) => e ? reject(e) : resolve(r.toString()));
    for (const m of ['a', 'b', 'c']) call.write(Buffer.from(m));
    call.end();
  });
  check(joined, 'a,b,c', 'client stream');
  const bidi = client.bidi(new grpc.Metadata(), options());
  const got = collect(bidi);
  bidi.write(Buffer.from('x')); bidi.write(Buffer.from('y')); bidi.end();
  check(await got, 'X,Y', 'bidi');
  client.close();
  console.log('ok');
})().catch((e) => { console.error(e); process.exit(1); });
