package configs

import (
	"strings"
	"testing"
)

func TestParseOrigin(t *testing.T) {
	for text, want := range map[string]string{
		"https://app.example.org":       "https://app.example.org",
		"HTTPS://App.Example.ORG":       "https://app.example.org",
		"https://app.example.org:443":   "https://app.example.org",
		"http://localhost:80":           "http://localhost",
		"https://app.example.org:8443":  "https://app.example.org:8443",
		"https://*.example.org":         "https://*.example.org",
		"https://*.example.org:444":     "https://*.example.org:444",
		"http://*.localhost:3000":       "http://*.localhost:3000",
		"http://127.0.0.1:5173":         "http://127.0.0.1:5173",
		"https://[0:0::1]:9":            "https://[::1]:9",
		"https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
	} {
		o, problem, _ := ParseOrigin(text)
		if problem != "" || o.String() != want {
			t.Errorf("%s: %s (%s), want %s", text, o, problem, want)
		}
	}
	for text, want := range map[string]string{
		"*":                             "every site",
		"https://*":                     "every site",
		"https://*:443":                 "every site",
		"https://*example.org":          "every site",
		"https://*.org":                 "everybody below",
		"https://*.":                    "no host name",
		"https://a.*.example.org":       "no host name",
		"https://*.*.example.org":       "no host name",
		"https://*.127.0.0.1":           "below an address",
		"https://*.[::1]":               "below an address",
		"null":                          "nobody",
		"app.example.org":               "https://",
		"ftp://app.example.org":         "https://",
		"https://app.example.org/":      "slash",
		"https://app.example.org/x":     "slash",
		"https://app.example.org?x":     "slash",
		"https://u@app.example.org":     "no host name",
		"https://":                      "no host name",
		"https://a..b":                  "no host name",
		"https://app.example.org:":      "port",
		"https://app.example.org:0":     "port",
		"https://app.example.org:99999": "port",
		"https://bücher.example":        "no host name",
		"https://[::1%25eth0]":          "IPv6",
		"https://a b":                   "no host name",
	} {
		if o, problem, remedy := ParseOrigin(text); !strings.Contains(problem, want) || remedy == "" {
			t.Errorf("%s: taken as %s: %q, want %q", text, o, problem, want)
		}
	}
}

func TestOriginMatches(t *testing.T) {
	for text, cases := range map[string]map[string]bool{
		"https://app.example.org": {
			"https://app.example.org": true, "https://app.example.org:443": false, "https://app.example.org:8443": false,
			"http://app.example.org": false, "https://app.example.org.evil.example": false, "https://evilapp.example.org": false,
			"https://x.app.example.org": false, "null": false, "": false, "https://": false, "https://app.example.orgx": false,
			"https://app.example.org/": false, "https://u@app.example.org": false,
		},
		"https://*.example.org": {
			"https://a.example.org": true, "https://a.b.example.org": true, "https://example.org": false, "https://.example.org": false,
			"https://evilexample.org": false, "https://a.example.org:444": false, "http://a.example.org": false,
			"https://a.example.org.evil.example": false, "https://evil.example/.example.org": false, "https://evil.example#.example.org": false,
			"https://evil.example?.example.org": false, "https://u@evil.example\\.example.org": false, "https://a..example.org": false,
			"https://*.example.org": false, "https://evil.example:1.example.org": false, "https://A.example.org": false,
		},
		"http://*.localhost:3000": {"http://a.localhost:3000": true, "http://a.localhost": false, "http://a.localhost:30000": false},
	} {
		o, problem, _ := ParseOrigin(text)
		if problem != "" {
			t.Fatalf("%s: %s", text, problem)
		}
		for origin, want := range cases {
			if o.Matches(origin) != want {
				t.Errorf("%s matches %q: %v", text, origin, !want)
			}
		}
	}
}

// FuzzOrigin: whatever is read means what it says when it is written again, and
// matches nothing that is not below it.
func FuzzOrigin(f *testing.F) {
	for _, s := range []string{"https://a.example", "https://*.example.org:8443", "http://[::1]:3", "null", "*"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, text, origin string) {
		o, problem, remedy := ParseOrigin(text)
		if problem != "" {
			if remedy == "" {
				t.Fatalf("%q: %s, and no remedy", text, problem)
			}
			return
		}
		if again, problem, _ := ParseOrigin(o.String()); problem != "" || again != o {
			t.Fatalf("%q is %s, and that is %s %s", text, o, again, problem)
		}
		if o.Matches(origin) && (!strings.HasPrefix(origin, o.scheme+"://") || !strings.HasSuffix(origin, o.host+o.port) || strings.ContainsAny(origin, "@/?#*\\ ") && strings.Count(origin, "/") != 2) {
			t.Fatalf("%s matches %q", o, origin)
		}
	})
}
