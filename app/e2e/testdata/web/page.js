// The page of the browser test: calls the demo service at the edge with the npm
// clients grpc-web (text and binary) and @connectrpc/connect-web, and posts what
// came of each to the server that it came from.
import { create, createFileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createClient, ConnectError, Code } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import * as grpcWeb from "grpc-web";

const { edge, key, descriptors, only } = window.settings;
const bytes = (s) => Uint8Array.from(atob(s), (c) => c.charCodeAt(0));
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, bytes(descriptors)));
const service = registry.getService("sallyport.demo.v1.Echo");
const withKey = { authorization: "Bearer " + key };
const results = {};

// described is what is told of an error.
const described = (code, message, detail, id) => `${code}: ${message}` + (detail ? ` [${detail}]` : "") + (id ? " (request id)" : "");

function connect() {
  const client = createClient(service, createGrpcWebTransport({ baseUrl: edge }));
  return async (method, input, headers) => {
    try {
      if (method === "Count") {
        const got = [];
        let id = "";
        for await (const m of client.count(input, { headers, onHeader: (h) => { id = h.get("sallyport-request-id"); } })) got.push(m.text);
        return got.join(" ") + (id ? " (request id)" : "");
      }
      let id = "";
      const m = await client[method.toLowerCase()](input, { headers, onHeader: (h) => { id = h.get("sallyport-request-id"); } });
      return `${m.text} for ${m.caller}` + (id ? " (request id)" : "");
    } catch (e) {
      const err = ConnectError.from(e);
      const details = err.findDetails(service.method.say.input).map((d) => d.text).join();
      return described(Code[err.code], err.rawMessage, details, err.metadata.get("sallyport-request-id"));
    }
  };
}

function google(format) {
  const client = new grpcWeb.GrpcWebClientBase({ format });
  const names = Object.fromEntries(Object.entries(grpcWeb.StatusCode).map(([name, n]) => [n, name]));
  const failed = (e) => {
    const bin = e.metadata && e.metadata["grpc-status-details-bin"];
    const text = bin ? atob(bin.replace(/-/g, "+").replace(/_/g, "/")) : "";
    return described(names[e.code], decodeURIComponent(e.message), text.includes("the detail") ? "the detail" : "", e.metadata && e.metadata["sallyport-request-id"]);
  };
  return (method, input, headers) =>
    new Promise((done) => {
      const m = service.method[method.toLowerCase()];
      const type = method === "Count" ? grpcWeb.MethodType.SERVER_STREAMING : grpcWeb.MethodType.UNARY;
      const path = `/sallyport.demo.v1.Echo/${method}`;
      const descriptor = new grpcWeb.MethodDescriptor(path, type, Object, Object,
        (x) => toBinary(m.input, create(m.input, x)), (b) => fromBinary(m.output, new Uint8Array(b)));
      if (method === "Count") {
        const got = [];
        let id = "", ended = false;
        const end = (text) => { if (!ended) { ended = true; done(text); } };
        const stream = client.serverStreaming(edge + path, input, headers, descriptor);
        stream.on("data", (x) => got.push(x.text));
        stream.on("metadata", (x) => { id = x["sallyport-request-id"]; });
        stream.on("error", (e) => end(failed(e)));
        stream.on("end", () => end(got.join(" ") + (id ? " (request id)" : "")));
        return;
      }
      let id = "";
      const call = client.rpcCall(edge + path, input, headers, descriptor, (e, x) => {
        setTimeout(() => done(e ? failed(e) : `${x.text} for ${x.caller}` + (id ? " (request id)" : "")));
      });
      call.on("metadata", (x) => { id = x["sallyport-request-id"]; });
    });
}

const clients = { "connect-web": connect(), "grpc-web text": google("text"), "grpc-web binary": google("binary") };

async function all() {
  for (const [name, call] of Object.entries(clients)) {
    if (only) {
      results[name] = await call("Count", { to: 2 }, {});
      continue;
    }
    results[name + ": unary"] = await call("Say", { text: "hello" }, withKey);
    results[name + ": stream"] = await call("Count", { to: 5, intervalMillis: 20 }, {});
    results[name + ": error with details"] = await call("Say", { text: "fail" }, withKey);
    results[name + ": error after messages"] = await call("Count", { to: 1002 }, {});
    results[name + ": no credentials"] = await call("Say", { text: "hello" }, {});
    results[name + ": bad credentials"] = await call("Count", { to: 1 }, { authorization: "Bearer spk_wrong" });
    results[name + ": large"] = (await call("Say", { text: "x".repeat(300000) }, withKey)).replace(/x+/, (x) => x.length);
  }
  if (only) return;
  // A page elsewhere, or something under other names, gets nothing out of it.
  const plain = async (path, init) => {
    try {
      const r = await fetch(edge + path, init);
      return `${r.status}`;
    } catch (e) {
      return "unreadable";
    }
  };
  results["fetch: GET"] = await plain("/");
  results["fetch: with credentials"] = await plain("/sallyport.demo.v1.Echo/Count", { method: "POST", credentials: "include", headers: { "content-type": "application/grpc-web+proto" }, body: new Uint8Array(5) });
  results["fetch: without"] = await plain("/sallyport.demo.v1.Echo/Count", { method: "POST", headers: { "content-type": "application/grpc-web+proto" }, body: new Uint8Array(5) });
}

all().catch((e) => { results.page = String(e); }).finally(() => fetch("/result", { method: "POST", body: JSON.stringify({ origin: location.origin, results }) }));
