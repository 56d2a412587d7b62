package app

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

// TestSecretsStayOutOfErrors: a secret in the wrong place of the command line
// is not repeated by the message about it.
func TestSecretsStayOutOfErrors(t *testing.T) {
	token := "sp1." + strings.Repeat("AgAB", 40)
	key := "spk_" + strings.Repeat("Zz09", 11)
	for _, args := range [][]string{
		{"--role", "gateway", token},
		{"--role", "gateway", "--jion", token},
		{"--role", "gateway", "--jion=" + token},
		{"--role", token},
		{"--role", "gateway", "--core", token},
		{"--role", "gateway", "--data-dir", t.TempDir(), "--join", "x" + token},
		{token},
		{"gateway", "add", token},
		{"call", "a.B/C", "-H", "authorization Bearer " + key},
		{"config", "check", "--role", "gateway", "--join", "x" + token, "--json"},
	} {
		var out, err bytes.Buffer
		if status := Main(context.Background(), args, strings.NewReader(""), &out, &err, []string{"HOME=" + t.TempDir()}); status == 0 {
			t.Errorf("%q was accepted", args)
		}
		if said := out.String() + err.String(); strings.Contains(said, token[8:]) || strings.Contains(said, key[8:]) {
			t.Errorf("%q is answered with the secret:\n%s", args, said)
		}
	}
}
