package link

import (
	"crypto/x509"
	"strings"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// Report is what core is told of a certificate in use, for status and alerts.
func Report(what string, c *x509.Certificate) *control.Certificate {
	return &control.Certificate{What: what, Subject: printable(c.Subject.String(), 256), Serial: pki.Serial(c),
		NotBeforeUnix: c.NotBefore.Unix(), NotAfterUnix: c.NotAfter.Unix()}
}

// ReportFile is Report for a file of certificates that is read whenever it is
// needed: of its first certificate, or, of a file of CA certificates, of the
// one that ends first. A file that cannot be read is reported as such.
func ReportFile(what, file string, cas bool) *control.Certificate {
	text, err := readBounded(file)
	var certs []*x509.Certificate
	if err == nil {
		certs, err = pki.ParseCertificatesPEM(text)
	}
	switch {
	case err != nil:
		return &control.Certificate{What: what, Error: printable(err.Error(), 1024)}
	case len(certs) == 0:
		return &control.Certificate{What: what, Error: printable(file+" holds no certificate", 1024)}
	}
	first := certs[0]
	if cas {
		for _, c := range certs {
			if c.NotAfter.Before(first.NotAfter) {
				first = c
			}
		}
	}
	return Report(what, first)
}

// ordered ends the name of a certificate that its holder orders of a public CA,
// other than one that lies in files.
const ordered = ", by ACME"

// ReportOrdered is Report for a certificate that is ordered of a public CA for a
// domain; c is nil while there is none, why says why there is no newer one.
func ReportOrdered(port, domain string, c *x509.Certificate, why string) *control.Certificate {
	what := port + ": " + domain + ordered
	r := &control.Certificate{What: what}
	if c != nil {
		r = Report(what, c)
	}
	r.Error = printable(why, 1024)
	return r
}

// Ordered says whether a report is about a certificate that is ordered of a
// public CA.
func Ordered(what string) bool { return strings.HasSuffix(what, ordered) }
