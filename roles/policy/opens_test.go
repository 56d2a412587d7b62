package policy

import "testing"

func TestOpens(t *testing.T) {
	p, err := Parse("test", []byte(`
[methods]
"/a.v1.One/Get"  = ["public"]
"/a.v1.One/Put"  = ["write"]
"/a.v1.Two/*"    = ["write"]
"/a.v1.Two/Peek" = []
"/b.*"           = ["public"]
"/b.Shut/*"      = []
"/b.Ajar/*"      = []
"/b.Ajar/Get"    = ["write"]

[[grant]]
apikey = "ci"
permissions = ["write"]
`))
	if err != nil {
		t.Fatal(err)
	}
	ci := Caller{Kind: APIKey, ID: "apikey:ci"}
	for service, want := range map[string][2]bool{ // nobody, ci
		"a.v1.One": {true, true}, "a.v1.Two": {false, true}, "a.v1.Three": {false, false}, "a.v1.On": {false, false}, "b.Any": {true, true}, "b.Shut": {false, false}, "b.Ajar": {false, true}, "": {false, false},
	} {
		if got := [2]bool{p.Opens(service, Caller{}), p.Opens(service, ci)}; got != want {
			t.Errorf("%s: %v, want %v", service, got, want)
		}
	}
}
