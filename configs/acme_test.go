package configs

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestACME(t *testing.T) {
	p := must(t, "", []string{"role=proxy", "domain=API.example.org.", "domain=b.example.org", "acme-agree-tos=true"}).Proxy
	if p.TLS != "acme" || p.PublicAddress != ":443" || p.HTTPAddress != ":80" || !reflect.DeepEqual(p.Domains, []string{"api.example.org", "b.example.org"}) {
		t.Errorf("a domain alone gives %+v", p)
	}
	if want := (&ACME{Directory: LetsEncrypt}); !reflect.DeepEqual(p.ACME, want) {
		t.Errorf("ordered of %+v", p.ACME)
	}
	if p := must(t, "", []string{"role=proxy", "domain=a.example", "acme-agree-tos=true", "http-address=off", "acme-staging=true"}).Proxy; p.HTTPAddress != "" || p.ACME.Directory != LetsEncryptStaging {
		t.Errorf("off gives %q, staging %+v", p.HTTPAddress, p.ACME)
	}
	// Base64 as CAs print it, in either alphabet and with padding.
	if p := must(t, "", []string{"role=proxy", "domain=a.example", "acme-agree-tos=true", "acme-eab-key-id=k", "acme-eab-mac-key=+/+/YWFhYWFhYWFhYWFhYQ=="}).Proxy; p.ACME.EABKey.Reveal() != "-_-_YWFhYWFhYWFhYWFhYQ" {
		t.Errorf("the MAC key is %q", p.ACME.EABKey.Reveal())
	}
	// A name of this network, of a CA of this network.
	if p := must(t, "", []string{"role=proxy", "domain=edge", "acme-agree-tos=true", "acme-directory=https://ca.lan/dir"}).Proxy; p.Domains[0] != "edge" {
		t.Errorf("got %q", p.Domains)
	}
}

// TestACMEOnGRPCPorts: one listener answers the CA for both roles of a process.
func TestACMEOnGRPCPorts(t *testing.T) {
	c := must(t, "", []string{"role=core", "grpc-domain=core.example.org", "acme-agree-tos=true"}).Core
	if c.GRPCTLS != "acme" || c.GRPCDomain != "core.example.org" || c.HTTPAddress != ":80" || c.ACME == nil {
		t.Errorf("got %+v", c)
	}
	s := must(t, `
role = "core,proxy"
acme_agree_tos = true
http_address = "127.0.0.1:8088"
[core]
grpc_domain = "core.example.org"
[proxy]
domain = ["api.example.org"]
grpc_domain = "dmz.example.org"
`, nil)
	if s.Core.HTTPAddress != "" || s.Proxy.HTTPAddress != "127.0.0.1:8088" || s.Core.ACME == nil || s.Proxy.GRPCDomain != "dmz.example.org" {
		t.Errorf("core %+v, proxy %+v", s.Core, s.Proxy)
	}
	s = must(t, "", []string{"role=proxy", "http-address=:8080"})
	if s.Proxy.HTTPAddress != ":8080" || s.Proxy.ACME != nil {
		t.Errorf("redirects alone: %+v", s.Proxy)
	}
}

func TestACMERefused(t *testing.T) {
	cert, key := *write(t, "c"), *write(t, "k")
	proxy := func(args ...string) []string {
		return append([]string{"role=proxy", "domain=a.example"}, args...)
	}
	agreed := func(args ...string) []string { return proxy(append(args, "acme-agree-tos=true")...) }
	for _, c := range []struct {
		name string
		text string
		args []string
		want string
	}{
		{name: "terms", args: proxy(), want: "--acme-agree-tos"},
		{name: "terms declined", args: proxy("acme-agree-tos=false"), want: "were not agreed to"},
		{name: "no domain", args: []string{"role=proxy", "tls=acme"}, want: "give --domain NAME"},
		{name: "no gRPC domain", args: []string{"role=core", "grpc-tls=acme"}, want: "give --grpc-domain NAME"},
		{name: "files too", args: agreed("tls-cert="+cert, "tls-key="+key), want: "names one that is there"},
		{name: "internal", args: agreed("tls=internal"), want: "names what for"},
		{name: "wildcard", args: []string{"role=proxy", "domain=*.a.example", "acme-agree-tos=true"}, want: "wildcard"},
		{name: "address", args: []string{"role=proxy", "domain=192.0.2.1", "acme-agree-tos=true"}, want: "is an address"},
		{name: "unicode", args: []string{"role=proxy", "domain=bücher.example", "acme-agree-tos=true"}, want: "xn--"},
		{name: "port", args: []string{"role=proxy", "domain=a.example:443", "acme-agree-tos=true"}, want: "is no domain"},
		{name: "twice", args: agreed("domain=A.EXAMPLE"), want: "named twice"},
		{name: "local name", args: []string{"role=proxy", "domain=edge", "acme-agree-tos=true"}, want: "no public CA signs"},
		{name: "plain directory", args: agreed("acme-directory=http://ca.example/dir"), want: "write https://"},
		{name: "directory", args: agreed("acme-directory=ca.example"), want: "no URL"},
		{name: "two directories", args: agreed("acme-directory=https://ca.example/d", "acme-staging=true"), want: "remove one"},
		{name: "mailbox", args: agreed("acme-email=nobody"), want: "no address of a mailbox"},
		{name: "half an account", args: agreed("acme-eab-key-id=k"), want: "--acme-eab-mac-key-file"},
		{name: "other half", args: agreed("acme-eab-mac-key=YWFhYWFhYWFhYWFhYWFhYWFh"), want: "--acme-eab-key-id"},
		{name: "short key", args: agreed("acme-eab-key-id=k", "acme-eab-mac-key=YWFh"), want: "no MAC key"},
		{name: "nothing ordered", args: []string{"role=proxy", "acme-email=a@b.example"}, want: "no certificate is ordered"},
		{name: "core listens for nobody", args: []string{"role=core", "http-address=:80"}, want: "--grpc-domain"},
		{name: "quoted", text: "role = \"proxy\"\ndomain = [\"a.example\"]\nacme_agree_tos = \"yes\"\n", want: "acme_agree_tos = true"},
		{name: "taken", args: agreed("http-address=:443"), want: "give each its own port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := try(t, c.text, c.args)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q is missing in: %v", c.want, err)
			}
			if strings.Contains(err.Error(), "YWFh") {
				t.Errorf("the MAC key is printed: %v", err)
			}
		})
	}
}

// TestACMEPrinted: what was read twice prints the same, and shows no secret.
func TestACMEPrinted(t *testing.T) {
	read := func() string {
		return fmt.Sprintf("%+v", *must(t, "", []string{"role=proxy", "domain=a.example", "acme-agree-tos=true", "acme-eab-key-id=k", "acme-eab-mac-key=YWFhYWFhYWFhYWFhYWFhYWFh"}).Proxy)
	}
	if a, b := read(), read(); a != b || strings.Contains(a, "YWFh") || !strings.Contains(a, LetsEncrypt) {
		t.Errorf("printed as\n%s\n%s", a, b)
	}
}
