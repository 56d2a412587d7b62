package configs

import (
	"log/slog"
	"net/netip"
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
	MemoryBudget  int64         // bytes that calls and connections may make the process grow by; 0: the default, which depends on the host
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
	MaxLinkAge   time.Duration // of a link that was replaced and drains; 168h
	AccessLog    string        // off, failures or all; failures
	Demo         bool          // --role all without upstream and without policy: open the built-in service

	GRPCTLS     string // what the gRPC port shows: internal, files or acme; internal
	GRPCCert    string // absolute; set when GRPCTLS is files
	GRPCKey     string // absolute; set when GRPCTLS is files
	GRPCDomain  string // set when GRPCTLS is acme
	HTTPAddress string // plain HTTP for the CA's challenges; empty: none
	ACME        *ACME  // set when GRPCTLS is acme
	ProxyGRPCCA string // verifies the proxies' files: absolute, or CASystem; empty: none do

	CAPassphrase Secret // seals the CA's keys; empty: CAKeyFile does
	CAKeyFile    string // absolute; empty: the default beside the CA; made with the CA

	BackupDir        string        // absolute; empty: no scheduled backups
	BackupEvery      time.Duration // 24h
	BackupKeep       int           // 14
	BackupPassphrase Secret        // set when BackupDir is

	NoPeerCheck  bool   // --peer-check off: addresses decide nothing; false
	FirewallFile string // absolute; who may reach the gRPC port, as data for root; DataDir/firewall.json

	AlertWebhook Secret // URL, https, or http on loopback; empty: none
}

// Proxy is the settings of the proxy role.
type Proxy struct {
	DataDir       string        // absolute; empty: everything is kept in memory
	GRPCAddress   string        // where core connects; :50051, with --role all 127.0.0.1:50051
	PublicAddress string        // 127.0.0.1:8443; :443 with TLS files or acme; :$PORT where PORT is set
	HTTPAddress   string        // plain HTTP: a CA's challenges, and redirects; :80 with ACME; empty: none
	TLS           string        // internal, files, acme or off
	Domains       []string      // lower case; set when TLS is acme
	TLSCert       string        // absolute; set when TLS is files
	TLSKey        string        // absolute; set when TLS is files
	Join          string        // the token's text, empty without one
	AccessLog     string        // off, failures or all; failures
	DrainTimeout  time.Duration // 30s
	MaxLinkAge    time.Duration // of a link that was replaced and drains; 168h
	RenewBefore   time.Duration // before the end of the own certificate; 0: at 0.60 to 0.66 of its life

	GRPCTLS      string   // what the gRPC port shows: internal, files or acme; internal
	GRPCCert     string   // absolute; set when GRPCTLS is files
	GRPCKey      string   // absolute; set when GRPCTLS is files
	GRPCDomain   string   // set when GRPCTLS is acme
	ACME         *ACME    // set when TLS or GRPCTLS is acme
	NoPeerCheck  bool     // --peer-check off: addresses decide nothing; false
	CoreIP       []string // where core comes from, wins over what core says; empty: that counts
	FirewallFile string   // absolute; who may reach the gRPC port, as data for root; DataDir/firewall.json

	ClientCAs []ClientCA // whose client certificates are accepted beside the embedded CA's

	Limits        Limits         // what strangers may cost
	TrustedFronts []netip.Prefix // who is believed about a caller's address and about TLS
	ProxyProtocol []netip.Prefix // who begins every connection with a PROXY header
	CORSOrigins   []Origin       // whose scripts may call by gRPC-Web; none
	AskClientCert string         // auto, always or never; auto: of clients that offer HTTP/2 alone
}

// ClientCA is a foreign CA whose client certificates a proxy accepts. Its callers
// are known by their common names, as cn:…, under the CA's name; none of them is
// ever anything in the trust domain.
type ClientCA struct {
	Name string // a DNS label, as the policy's client_ca names it; unique in the proxy
	File string // absolute; CA certificates, PEM
}

// Gateway is the settings of the gateway role.
type Gateway struct {
	DataDir      string        // absolute; empty: everything is kept in memory
	Core         string        // HOST:PORT, wins over the token and over what core advertises; empty: theirs
	Join         string        // the token's text, empty without one
	Upstreams    []Upstream    // the services behind this gateway
	Allow        []string      // ceiling on methods that core cannot raise; empty: none
	Demo         bool          // no upstream was given: serve the built-in Echo
	AccessLog    string        // off, failures or all; failures
	DrainTimeout time.Duration // 30s
	MaxLinkAge   time.Duration // of a link that was replaced and drains; 168h
	RenewBefore  time.Duration // before the end of the own certificate; 0: at 0.60 to 0.66 of its life

	GRPCCA         string // verifies core's files: absolute, or CASystem; empty: none
	GRPCServerName string // name in core's files; empty: the one dialled
	ExportCert     string // absolute; directory of an exported pair and its CA; empty: none

	Listen      []Listen // where apps beside this gateway come in with calls; none
	ListenGroup string   // who may use the unix sockets of Listen, a name or a number; empty: the process's user alone
}

// CASystem stands for this host's CA certificates where a file of them can be
// named.
const CASystem = "system"

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
