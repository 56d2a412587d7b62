package configs

// Flags is what the command line said and nothing else: nil is "not given".
// The parser of the command line must set no defaults here; Load finds the
// values of flags that were not given in the environment and the file.
//
// The tag roles lists who has the setting ("process" for the process as a
// whole), fallback its default, kind its form.
type Flags struct {
	Role   *string `name:"role" group:"run" help:"What this process is: core, proxy, gateway, all, or several separated by commas." placeholder:"ROLE" roles:"process" kind:"roles"`
	Config *string `name:"config" group:"run" help:"Settings file (TOML). Its keys are these flags in snake_case." placeholder:"FILE" roles:"process" kind:"config"`

	DataDir      *string `name:"data-dir" group:"run" help:"Where state and keys are kept (default $STATE_DIRECTORY, else /var/lib/sallyport as root, else the XDG state directory)." placeholder:"DIR" roles:"core,proxy,gateway" kind:"dir"`
	DrainTimeout *string `name:"drain-timeout" group:"run" help:"How long calls may finish at shutdown (default 30s)." placeholder:"DURATION" roles:"core,proxy,gateway" kind:"duration" fallback:"30s"`
	AccessLog    *string `name:"access-log" group:"run" help:"One log line per call: off, failures or all (default failures)." placeholder:"WHICH" roles:"core,proxy,gateway" kind:"off|failures|all" fallback:"failures"`

	HealthAddress *string `name:"health-address" group:"run" help:"Plain HTTP for health checks and metrics (default 127.0.0.1:8080)." placeholder:"HOST:PORT" roles:"process" kind:"listen" fallback:"127.0.0.1:8080"`
	LogLevel      *string `name:"log-level" group:"run" help:"debug, info, warn or error (default info)." placeholder:"LEVEL" roles:"process" kind:"debug|info|warn|error" fallback:"info"`
	LogFormat     *string `name:"log-format" group:"run" help:"auto, text or json; auto is text on a terminal (default auto)." placeholder:"FORMAT" roles:"process" kind:"auto|text|json" fallback:"auto"`

	GRPCAddress *string `name:"grpc-address" group:"core and proxy" help:"Where gateways connect to core (default :50055), or core to a proxy (default :50051)." placeholder:"HOST:PORT" roles:"core,proxy" kind:"listen"`

	Advertise    *string `name:"advertise" group:"core" help:"Core's address as gateways reach it; port 50055 if none is given." placeholder:"HOST:PORT" roles:"core" kind:"dial"`
	TrustDomain  *string `name:"trust-domain" group:"core" help:"Name of this installation in every identity; fixed once the CA exists (default sallyport.internal)." placeholder:"NAME" roles:"core" kind:"trust-domain" fallback:"sallyport.internal"`
	Policy       *string `name:"policy" group:"core" help:"Policy file, applied at start and when it changes." placeholder:"FILE" roles:"core" kind:"file"`
	CertLifetime *string `name:"cert-lifetime" group:"core" help:"Lifetime of components' certificates (default 24h)." placeholder:"DURATION" roles:"core" kind:"lifetime" fallback:"24h"`

	PublicAddress *string `name:"public-address" group:"proxy" help:"Where clients connect (default 127.0.0.1:8443; :443 with --tls-cert; :$PORT where PORT is set)." placeholder:"HOST:PORT" roles:"proxy" kind:"listen"`
	TLS           *string `name:"tls" group:"proxy" help:"Certificate of the public port: internal (from the embedded CA) or files (default internal; files with --tls-cert)." placeholder:"MODE" roles:"proxy" kind:"internal|files"`
	TLSCert       *string `name:"tls-cert" group:"proxy" help:"Certificate chain of the public port, PEM, leaf first." placeholder:"FILE" roles:"proxy" kind:"file"`
	TLSKey        *string `name:"tls-key" group:"proxy" help:"Key of --tls-cert, PEM." placeholder:"FILE" roles:"proxy" kind:"file"`

	Join     *string `name:"join" group:"proxy and gateway" help:"Join token as 'proxy add' or 'gateway add' printed it; - asks for it." placeholder:"TOKEN|-" roles:"proxy,gateway" kind:"secret"`
	JoinFile *string `name:"join-file" group:"proxy and gateway" help:"File that holds the join token." placeholder:"FILE" roles:"proxy,gateway" kind:"secret-file"`

	Core     *string  `name:"core" group:"gateway" help:"Core's address, where it is not the one in the token; port 50055 if none is given." placeholder:"HOST:PORT" roles:"gateway" kind:"dial"`
	Upstream []string `name:"upstream" group:"gateway" sep:"none" help:"A gRPC server behind this gateway: HOST:PORT on this host, tls://HOST:PORT, unix:///PATH, or h2c://HOST:PORT. Services are asked for by reflection unless listed. Repeatable." placeholder:"[NAME=]ADDRESS[=SERVICES]" roles:"gateway" kind:"upstreams"`
	Allow    []string `name:"allow" group:"gateway" help:"Methods that may be called through this gateway, whatever core says: /pkg.Service/Method, /pkg.Service/*, /pkg.*. Repeatable." placeholder:"METHOD" roles:"gateway" kind:"methods"`
}
