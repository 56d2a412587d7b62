// Package control holds the messages that components of Sallyport exchange:
// joining (join.proto), the control session between core and a gateway or
// proxy (session.proto), and the operator's verbs over admin.sock
// (admin.proto). It has no behaviour of its own. Fields are only ever added,
// never renumbered, because versions N and N−1 work together.
package control

//go:generate protoc --proto_path=../.. --go_out=../.. --go_opt=module=sallyport --go-grpc_out=../.. --go-grpc_opt=module=sallyport roles/control/session.proto roles/control/join.proto roles/control/admin.proto roles/gateway/demo/echo.proto
