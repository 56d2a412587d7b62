package policy

// closed is the policy of an installation that was given none.
const closed = `# The policy in force until one is applied: every call is denied, except
# health checks. Methods that are opened, and to whom, are written here:
#
#   [methods]
#   "/acme.orders.v1.Orders/Get" = ["orders:read"]
#
#   [[grant]]
#   apikey = "ci"
#   permissions = ["orders:read"]

[methods]
"/grpc.health.v1.Health/*" = ["public"]
`

// demonstration opens what serves to try the product out.
const demonstration = `# The policy of --role all without settings: the built-in demo service is open
# to everyone who can connect, which is this host. Applying a policy of your
# own replaces it.

[methods]
"/sallyport.demo.v1.Echo/*" = ["public"]
"/grpc.health.v1.Health/*" = ["public"]
"/grpc.reflection.v1.ServerReflection/*" = ["public"]
"/grpc.reflection.v1alpha.ServerReflection/*" = ["public"]
`

// Default is the policy of an installation that was given none. The health
// service is open; with demo the built-in Echo and reflection are too.
func Default(demo bool) *Policy {
	name, text := "default policy", closed
	if demo {
		name, text = "demo policy", demonstration
	}
	p, err := Parse(name, []byte(text))
	if err != nil {
		panic(err) // a constant of this file
	}
	return p
}
