package configs

// Flags is what the command line said and nothing else: nil is "not given".
// The parser of the command line must set no defaults here; Load finds the
// values of flags that were not given in the environment and the file.
//
// The tag roles lists who has the setting ("process" for the process as a
// whole), fallback its default, kind its form, and defguard the variable that
// Defguard's guide gives to a role for the same thing.
type Flags struct {
	Role   *string `name:"role" group:"run" help:"What this process is: core, proxy, gateway, all, or several separated by commas." placeholder:"ROLE" roles:"process" kind:"roles"`
	Config *string `name:"config" group:"run" help:"Settings file (TOML). Its keys are these flags in snake_case." placeholder:"FILE" roles:"process" kind:"config"`

	DataDir      *string `name:"data-dir" group:"run" help:"Where state and keys are kept (default $STATE_DIRECTORY, else /var/lib/sallyport as root, else the XDG state directory)." placeholder:"DIR" roles:"core,proxy,gateway" kind:"dir"`
	DrainTimeout *string `name:"drain-timeout" group:"run" help:"How long calls may finish at shutdown (default 30s)." placeholder:"DURATION" roles:"core,proxy,gateway" kind:"duration" fallback:"30s"`
	AccessLog    *string `name:"access-log" group:"run" help:"One log line per call: off, failures or all (default failures)." placeholder:"WHICH" roles:"core,proxy,gateway" kind:"off|failures|all" fallback:"failures"`

	MaxLinkAge *string `name:"max-link-age" group:"run" help:"How long a connection between components that was replaced may go on for the calls it carries (default 168h)." placeholder:"DURATION" roles:"core,proxy,gateway" kind:"duration" fallback:"168h"`

	HealthAddress *string `name:"health-address" group:"run" help:"Plain HTTP for health checks and metrics (default 127.0.0.1:8080)." placeholder:"HOST:PORT" roles:"process" kind:"listen" fallback:"127.0.0.1:8080"`
	LogLevel      *string `name:"log-level" group:"run" help:"debug, info, warn or error (default info)." placeholder:"LEVEL" roles:"process" kind:"debug|info|warn|error" fallback:"info"`
	LogFormat     *string `name:"log-format" group:"run" help:"auto, text or json; auto is text on a terminal (default auto)." placeholder:"FORMAT" roles:"process" kind:"auto|text|json" fallback:"auto"`

	MemoryBudget *string `name:"memory-budget" group:"run" help:"How much memory calls and connections may make this process grow by: 256MiB, 2GiB (default 512MiB, or half of what the container has if that is less)." placeholder:"SIZE" roles:"process" kind:"size"`

	GRPCAddress *string `name:"grpc-address" group:"core and proxy" help:"Where gateways connect to core (default :50055), or core to a proxy (default :50051)." placeholder:"HOST:PORT" roles:"core,proxy" kind:"listen"`

	GRPCTLS  *string `name:"grpc-tls" group:"core and proxy" help:"Certificate that the gRPC port shows: internal (from the embedded CA), files or acme (default internal; files with --grpc-cert, acme with --grpc-domain)." placeholder:"MODE" roles:"core,proxy" kind:"internal|files|acme"`
	GRPCCert *string `name:"grpc-cert" group:"core and proxy" help:"Certificate chain of the gRPC port, PEM, leaf first. Components prove their own identities all the same." placeholder:"FILE" roles:"core,proxy" kind:"file" defguard:"core=DEFGUARD_GRPC_CERT,proxy=DEFGUARD_PROXY_GRPC_CERT"`
	GRPCKey  *string `name:"grpc-key" group:"core and proxy" help:"Key of --grpc-cert, PEM." placeholder:"FILE" roles:"core,proxy" kind:"file" defguard:"core=DEFGUARD_GRPC_KEY,proxy=DEFGUARD_PROXY_GRPC_KEY"`

	PeerCheck    *string `name:"peer-check" group:"core and proxy" help:"on: the gRPC port is closed to every address that is no peer's, and an identity counts from its own addresses only. off: leave it to mutual TLS (default on)." placeholder:"on|off" roles:"core,proxy" kind:"on|off" fallback:"on"`
	FirewallFile *string `name:"firewall-file" group:"core and proxy" help:"Where the peers' addresses are written for 'sallyport firewall apply --from' (default firewall.json in the data directory)." placeholder:"FILE" roles:"core,proxy" kind:"path"`
	GRPCDomain   *string `name:"grpc-domain" group:"core and proxy" help:"Name of the gRPC port: its certificate is ordered of a public CA, which has to reach --http-address on port 80 of that name." placeholder:"NAME" roles:"core,proxy" kind:"domain"`

	HTTPAddress       *string `name:"http-address" group:"core and proxy" help:"Plain HTTP: answers a public CA, and sends everybody else to https (default :80 where certificates are ordered); off for none." placeholder:"HOST:PORT|off" roles:"core,proxy" kind:"http"`
	ACMEAgreeTOS      *bool   `name:"acme-agree-tos" group:"core and proxy" help:"You have read the CA's terms of service and agree to them." placeholder:"true|false" roles:"core,proxy" kind:"true|false"`
	ACMEEmail         *string `name:"acme-email" group:"core and proxy" help:"Mailbox that the CA may write to." placeholder:"ADDRESS" roles:"core,proxy" kind:"email"`
	ACMEDirectory     *string `name:"acme-directory" group:"core and proxy" help:"Directory of the CA (default that of Let's Encrypt)." placeholder:"URL" roles:"core,proxy" kind:"url"`
	ACMERoot          *string `name:"acme-root" group:"core and proxy" help:"CA certificates that verify the directory's own TLS, PEM (default this host's)." placeholder:"FILE" roles:"core,proxy" kind:"file"`
	ACMEStaging       *bool   `name:"acme-staging" group:"core and proxy" help:"Try it out with the staging directory of Let's Encrypt: wide limits, and nobody trusts its certificates." placeholder:"true|false" roles:"core,proxy" kind:"true|false"`
	ACMEEABKeyID      *string `name:"acme-eab-key-id" group:"core and proxy" help:"Key id of an external account, where the CA wants one." placeholder:"ID" roles:"core,proxy" kind:"text"`
	ACMEEABMACKey     *string `name:"acme-eab-mac-key" group:"core and proxy" help:"MAC key of the external account, base64; - asks for it." placeholder:"KEY|-" roles:"core,proxy" kind:"secret"`
	ACMEEABMACKeyFile *string `name:"acme-eab-mac-key-file" group:"core and proxy" help:"File that holds the MAC key of the external account." placeholder:"FILE" roles:"core,proxy" kind:"secret-file"`

	Advertise    *string `name:"advertise" group:"core" help:"Core's address as gateways reach it; port 50055 if none is given." placeholder:"HOST:PORT" roles:"core" kind:"dial"`
	TrustDomain  *string `name:"trust-domain" group:"core" help:"Name of this installation in every identity; fixed once the CA exists (default sallyport.internal)." placeholder:"NAME" roles:"core" kind:"trust-domain" fallback:"sallyport.internal"`
	Policy       *string `name:"policy" group:"core" help:"Policy file, applied at start and when it changes." placeholder:"FILE" roles:"core" kind:"file"`
	CertLifetime *string `name:"cert-lifetime" group:"core" help:"Lifetime of components' certificates (default 24h)." placeholder:"DURATION" roles:"core" kind:"lifetime" fallback:"24h"`
	ProxyGRPCCA  *string `name:"proxy-grpc-ca" group:"core" help:"Who vouches for the --grpc-cert of proxies: a file of CA certificates, PEM, or system for this host's." placeholder:"FILE|system" roles:"core" kind:"ca" defguard:"core=DEFGUARD_PROXY_GRPC_CA"`

	CAPassphraseFile *string `name:"ca-passphrase-file" group:"core" help:"File with the passphrase that seals the CA's keys; else the systemd credential sallyport-ca-passphrase; else --ca-key-file." placeholder:"FILE" roles:"core" kind:"passphrase"`
	CAKeyFile        *string `name:"ca-key-file" group:"core" help:"File with the key that seals the CA's keys; made with the CA (default beside the CA)." placeholder:"FILE" roles:"core" kind:"path"`

	BackupDir            *string `name:"backup-dir" group:"core" help:"Write encrypted backups of the whole state here, on a schedule." placeholder:"DIR" roles:"core" kind:"dir"`
	BackupEvery          *string `name:"backup-every" group:"core" help:"How often (default 24h)." placeholder:"DURATION" roles:"core" kind:"duration" fallback:"24h"`
	BackupKeep           *string `name:"backup-keep" group:"core" help:"How many are kept; the oldest goes (default 14)." placeholder:"COUNT" roles:"core" kind:"count" fallback:"14"`
	BackupPassphraseFile *string `name:"backup-passphrase-file" group:"core" help:"File with the passphrase of the backups." placeholder:"FILE" roles:"core" kind:"passphrase"`

	AlertWebhook     *string `name:"alert-webhook" group:"core" help:"URL that every alert is posted to as JSON; - asks for it." placeholder:"URL|-" roles:"core" kind:"secret"`
	AlertWebhookFile *string `name:"alert-webhook-file" group:"core" help:"File that holds the URL of --alert-webhook." placeholder:"FILE" roles:"core" kind:"secret-file"`

	CoreIP        []string `name:"core-ip" group:"proxy" help:"Addresses core comes from, as this host sees them; wins over what core says. Repeatable." placeholder:"IP|CIDR|NAME|any" roles:"proxy" kind:"peers"`
	PublicAddress *string  `name:"public-address" group:"proxy" help:"Where clients connect (default 127.0.0.1:8443; :443 with --domain or --tls-cert; :$PORT where PORT is set)." placeholder:"HOST:PORT" roles:"proxy" kind:"listen"`
	Domain        []string `name:"domain" group:"proxy" help:"Name of the public port: its certificate is ordered of a public CA, Let's Encrypt unless --acme-directory says otherwise. Repeatable." placeholder:"NAME" roles:"proxy" kind:"domains"`
	TLS           *string  `name:"tls" group:"proxy" help:"Certificate of the public port: internal (from the embedded CA), files or acme (default internal; files with --tls-cert, acme with --domain); off behind a --trusted-front that ends TLS." placeholder:"MODE" roles:"proxy" kind:"internal|files|acme|off"`
	TLSCert       *string  `name:"tls-cert" group:"proxy" help:"Certificate chain of the public port, PEM, leaf first." placeholder:"FILE" roles:"proxy" kind:"file"`
	TLSKey        *string  `name:"tls-key" group:"proxy" help:"Key of --tls-cert, PEM." placeholder:"FILE" roles:"proxy" kind:"file"`
	ClientCA      []string `name:"client-ca" group:"proxy" sep:"none" help:"Accept client certificates of another CA too; policies call it NAME. FILE is PEM. Repeatable." placeholder:"NAME=FILE" roles:"proxy" kind:"client-cas"`

	TrustedFront  []string `name:"trusted-front" group:"proxy" help:"Where a front comes from that ends TLS for --tls off, or is believed about x-forwarded-for. Repeatable." placeholder:"CIDR" roles:"proxy" kind:"cidrs"`
	ProxyProtocol []string `name:"proxy-protocol" group:"proxy" help:"Where balancers come from that begin every connection with a PROXY protocol header, v1 or v2. Repeatable." placeholder:"CIDR" roles:"proxy" kind:"cidrs"`
	Limit         []string `name:"limit" group:"proxy" help:"One limit of the public port, such as connections=4096 or header_list=32KiB; 'config print' lists them all. Repeatable." placeholder:"NAME=VALUE" roles:"proxy" kind:"limits"`
	CORSOrigin    []string `name:"cors-origin" group:"proxy" help:"Origin of web pages that may call by gRPC-Web: https://app.example.org, or https://*.example.org for every host below. Repeatable." placeholder:"ORIGIN" roles:"proxy" kind:"origins"`
	AskClientCert *string  `name:"ask-client-cert" group:"proxy" help:"Ask for client certificates: auto (whoever offers HTTP/2 alone, as gRPC clients do and browsers do not), always or never (default auto)." placeholder:"WHEN" roles:"proxy" kind:"auto|always|never" fallback:"auto"`

	Join     *string `name:"join" group:"proxy and gateway" help:"Join token as 'proxy add' or 'gateway add' printed it; - asks for it." placeholder:"TOKEN|-" roles:"proxy,gateway" kind:"secret"`
	JoinFile *string `name:"join-file" group:"proxy and gateway" help:"File that holds the join token." placeholder:"FILE" roles:"proxy,gateway" kind:"secret-file"`

	State *string `name:"state" group:"proxy and gateway" help:"disk, or memory on hosts without a disk: the process joins anew at every start, with a token of 'add --reusable' (default disk)." placeholder:"disk|memory" roles:"proxy,gateway" kind:"disk|memory" fallback:"disk"`

	RenewBefore *string `name:"renew-before" group:"proxy and gateway" help:"Renew the own certificate this long before it ends (default when 0.60 to 0.66 of its life are over)." placeholder:"DURATION" roles:"proxy,gateway" kind:"duration"`

	Core     *string  `name:"core" group:"gateway" help:"Core's address, where it is not the one in the token; port 50055 if none is given." placeholder:"HOST:PORT" roles:"gateway" kind:"dial"`
	Upstream []string `name:"upstream" group:"gateway" sep:"none" help:"A gRPC server behind this gateway: HOST:PORT on this host, tls://HOST:PORT, unix:///PATH, or h2c://HOST:PORT. Services are asked for by reflection unless listed. Repeatable." placeholder:"[NAME=]ADDRESS[=SERVICES]" roles:"gateway" kind:"upstreams"`
	Allow    []string `name:"allow" group:"gateway" help:"Methods that may be called through this gateway, whatever core says: /pkg.Service/Method, /pkg.Service/*, /pkg.*. Repeatable." placeholder:"METHOD" roles:"gateway" kind:"methods"`

	GRPCCA         *string  `name:"grpc-ca" group:"gateway" help:"Who vouches for core's --grpc-cert: a file of CA certificates, PEM, or system for this host's." placeholder:"FILE|system" roles:"gateway" kind:"ca" defguard:"gateway=DEFGUARD_GRPC_CA"`
	GRPCServerName *string  `name:"grpc-server-name" group:"gateway" help:"Name in core's --grpc-cert, where it is not the one dialled." placeholder:"NAME" roles:"gateway" kind:"server-name"`
	Listen         []string `name:"listen" group:"gateway" sep:"none" help:"An entrance for apps beside this gateway: they call services behind other gateways here, as this gateway, or as themselves with a token or a client certificate. unix:///PATH, 127.0.0.1:PORT, or tls://HOST:PORT. Grants may name the label. Repeatable." placeholder:"[LABEL=]ADDRESS" roles:"gateway" kind:"listens"`
	ListenGroup    *string  `name:"listen-group" group:"gateway" help:"Group whose members may use the unix sockets of --listen (default: the gateway's own user alone)." placeholder:"GROUP" roles:"gateway" kind:"group"`

	ExportCert *string `name:"export-cert" group:"gateway" help:"Keep a renewed certificate, its key and the CA here, as PEM files, for a service beside this gateway." placeholder:"DIR" roles:"gateway" kind:"dir"`
}
