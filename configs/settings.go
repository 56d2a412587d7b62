package configs

import (
	"log/slog"
	"time"
)

// Role is one of the three parts a process can play.
type Role string

// The roles. "all" is not one of them: it is the three in one process.
const (
	RoleCore    Role = "core"
	RoleProxy   Role = "proxy"
	RoleGateway Role = "gateway"
)

// Settings is everything a process needs to know to start. Load makes it, and
// what it made needs no further check: addresses parse, files exist, modes
// are known, durations are positive.
type Settings struct {
	Roles   []Role // in the order core, proxy, gateway
	File    string // the settings file, absolute; empty without one
	Process Process
	Core    *Core    // nil when the role does not run
	Proxy   *Proxy   // nil when the role does not run
	Gateway *Gateway // nil when the role does not run

	// Warnings are settings that were read and mean nothing here, each a
	// sentence fit for a log line.
	Warnings []string
}

// Process holds what belongs to the process and not to a role.
type Process struct {
	HealthAddress string        // plain HTTP health and metrics; 127.0.0.1:8080
	LogLevel      slog.Level    // info
	LogFormat     string        // auto, text or json; auto is text on a terminal
	DrainTimeout  time.Duration // the longest of the running roles'
	All           bool          // --role all: one process that joins its own parts
}

// Core is the settings of the core role.
//
// DataDir is shared by the roles of one process unless a role's table says
// otherwise, so every role keeps its files there under its own name.
type Core struct {
	DataDir      string        // absolute; see DataDir
	GRPCAddress  string        // where gateways connect; :50055, with --role all 127.0.0.1:50055
	Advertise    string        // HOST:PORT that gateways dial; empty: only loopback can join
	TrustDomain  string        // sallyport.internal
	PolicyFile   string        // absolute; applied at start and when it changes; empty: what was applied last
	CertLifetime time.Duration // of component certificates; 24h
	DrainTimeout time.Duration // 30s
	AccessLog    string        // off, failures or all; failures
	Demo         bool          // --role all without upstream and without policy: open the built-in service
}

// Proxy is the settings of the proxy role.
type Proxy struct {
	DataDir       string        // absolute
	GRPCAddress   string        // where core connects; :50051, with --role all 127.0.0.1:50051
	PublicAddress string        // 127.0.0.1:8443; :443 with TLS files; :$PORT where PORT is set
	TLS           string        // internal or files
	TLSCert       string        // absolute; set when TLS is files
	TLSKey        string        // absolute; set when TLS is files
	Join          string        // the token's text, empty without one
	AccessLog     string        // off, failures or all; failures
	DrainTimeout  time.Duration // 30s
}

// Gateway is the settings of the gateway role.
type Gateway struct {
	DataDir      string        // absolute
	Core         string        // HOST:PORT, wins over the token and over what core advertises; empty: theirs
	Join         string        // the token's text, empty without one
	Upstreams    []Upstream    // the services behind this gateway
	Allow        []string      // ceiling on methods that core cannot raise; empty: none
	Demo         bool          // no upstream was given: serve the built-in Echo
	AccessLog    string        // off, failures or all; failures
	DrainTimeout time.Duration // 30s
}

// Upstream is one gRPC server behind a gateway.
type Upstream struct {
	Name       string // a DNS label, unique in the gateway
	Address    UpstreamAddress
	Services   []string // full names, or package patterns ending in .*; empty: ask by reflection
	CA         string   // tls only: PEM file that replaces the system's roots
	Cert       string   // tls only: client certificate, PEM
	Key        string   // tls only: its key, PEM
	ServerName string   // tls only: name to expect where it differs from the address
}
