package policy

// closed is the policy of an installation that was given none.
const closed = `# The policy in force until one is applied: every call is denied, except
# health checks, and reflection, which shows a caller what he may call. Methods
# that are opened, and to whom, are written here:
#
#   [methods]
#   "/acme.orders.v1.Orders/Get" = ["orders:read"]
#
#   [[grant]]
#   apikey = "ci"
#   permissions = ["orders:read"]
`

// demonstration opens what serves to try the product out.
const demonstration = `# The policy of --role all without settings: the built-in demo service is open
# to everyone who can connect, which is this host. Applying a policy of your
# own replaces it. Health checks and reflection are open without a row.

[methods]
"/sallyport.demo.v1.Echo/*" = ["public"]
`

// Default is the policy of an installation that was given none. With
// demo the built-in Echo is open.
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
