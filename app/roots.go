package app

// The public roots are part of the binary, for hosts and images that have none
// of their own: "system" in the settings then means these.
import _ "golang.org/x/crypto/x509roots/fallback"
