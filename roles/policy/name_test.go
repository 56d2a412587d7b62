package policy

import (
	"strings"
	"testing"
)

func TestPercentEncodeLeavesNothingThatHeadersObey(t *testing.T) {
	for in, want := range map[string]string{
		"spiffe://example.org/client/billing": "spiffe://example.org/client/billing",
		"cn:grpc client":                      "cn:grpc%20client",
		"cn:100%":                             "cn:100%25",
		"cn:ä\r\nx: y":                        "cn:%C3%A4%0D%0Ax:%20y",
		"a,b":                                 "a,b",
		"":                                    "",
		"a;ca=b":                              "a%3Bca=b",
		"\x00\x7f\"<>\\^`{|}":                 "%00%7F%22%3C%3E%5C%5E%60%7B%7C%7D",
	} {
		if got := PercentEncode(in); got != want {
			t.Errorf("PercentEncode(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzPercentEncode(f *testing.F) {
	f.Add("cn:ä\r\n%41")
	f.Fuzz(func(t *testing.T, s string) {
		out := PercentEncode(s)
		for i := range len(out) {
			if out[i] <= ' ' || out[i] > '~' {
				t.Fatalf("%q became %q", s, out)
			}
		}
		if strings.Contains(s, "%") && out == s {
			t.Fatalf("%q can be read in two ways", s)
		}
	})
}

// TestNamesTellClientCAsApart whatever the certificate of one of them says.
func TestNamesTellClientCAsApart(t *testing.T) {
	for _, tc := range []struct {
		caller Caller
		want   string
	}{
		{Caller{}, ""},
		{Caller{ID: "apikey:ci"}, "apikey:ci"},
		{Caller{ID: "spiffe://example.org/client/billing"}, "spiffe://example.org/client/billing"},
		{Caller{ID: "cn:x", ClientCA: "partner"}, "cn:x;ca=partner"},
		{Caller{ID: "cn:x", ClientCA: "other"}, "cn:x;ca=other"},
		{Caller{ID: "cn:x;ca=partner", ClientCA: "other"}, "cn:x%3Bca=partner;ca=other"},
		{Caller{ID: "cn:x%3Bca=partner", ClientCA: "other"}, "cn:x%253Bca=partner;ca=other"},
		{Caller{ID: "https://login.example.org#x;ca=partner"}, "https://login.example.org#x%3Bca=partner"},
	} {
		if got := tc.caller.Name(); got != tc.want {
			t.Errorf("%+v is called %q, want %q", tc.caller, got, tc.want)
		}
	}
}

// TestDenialsNameCallersSafely: the message is logged, and a subject is whatever
// its issuer lets people call themselves.
func TestDenialsNameCallersSafely(t *testing.T) {
	p, err := Parse("test", []byte("[methods]\n\"/a.B/C\" = [\"x\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := p.Decide("/a.B/C", Caller{Kind: Token, ID: "https://login.example.org#a\u202eb;ca=partner"})
	if want := "https://login.example.org#a%E2%80%AEb%3Bca=partner may not call this method"; d.Message != want {
		t.Errorf("%q, want %q", d.Message, want)
	}
}
