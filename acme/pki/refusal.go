package pki

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"sallyport/roles/control"
)

// Refusal says why something was refused: Code for machines and tests, Cause
// (what happened, to what) and Remedy (what to do next) for people. The same
// causes have the same names in logs, in the answer of a Why call, in
// cert verify and in doctor.
type Refusal struct {
	Code, Cause, Remedy string
}

// The codes of refusals. They are stable and lower_snake_case.
const (
	CodeUnknownAuthority    = "unknown_authority"
	CodeIntermediateMissing = "intermediate_missing"
	CodeExpired             = "expired"
	CodeExpiredTooLong      = "expired_too_long"
	CodeNotYetValid         = "not_yet_valid"
	CodeNameMismatch        = "name_mismatch"
	CodeCommonNameOnly      = "common_name_only"
	CodeWrongUsage          = "wrong_usage"
	CodeWrongKeyUsage       = "wrong_key_usage"
	CodeCACertificate       = "ca_certificate"
	CodeNoIdentity          = "no_identity"
	CodeManyIdentities      = "many_identities"
	CodeBadIdentity         = "bad_identity"
	CodeWrongTrustDomain    = "wrong_trust_domain"
	CodeWrongRole           = "wrong_role"
	CodeWrongName           = "wrong_name"
	CodeWrongIssuer         = "wrong_issuer"
	CodeRevoked             = "revoked"
	CodeWeakKey             = "weak_key"
	CodeWeakSignature       = "weak_signature"
	CodeCriticalExtension   = "unknown_critical_extension"
	CodeNameConstraint      = "name_constraint"
	CodePathLength          = "path_length"
	CodeBadCertificate      = "bad_certificate"
	CodeCertificateRequired = "certificate_required"
	CodePinMismatch         = "pin_mismatch"
	CodeBadRevocations      = "bad_revocations"
	CodeTokenExpired        = "token_expired"
	CodeKeyMismatch         = "key_mismatch"
	CodePlaintext           = "plaintext"
	CodeNotTLS              = "not_tls"
	CodeNoCommonVersion     = "no_common_version"
	CodeNoCommonCipher      = "no_common_cipher"
	CodeNoCommonProtocol    = "no_common_protocol"
	CodeRefusedByPeer       = "refused_by_peer"
	CodeConnectionRefused   = "connection_refused"
	CodeConnectionClosed    = "connection_closed"
	CodeNoAnswer            = "no_answer"
	CodeNoRoute             = "no_route"
	CodeNameUnknown         = "name_unknown"
	CodeOther               = "failed"
)

// ErrNoIdentity is what errors.Is finds in the refusal of a client certificate
// that chains well but names nobody.
var ErrNoIdentity error = &Refusal{
	Code:   CodeNoIdentity,
	Cause:  "the client certificate carries no identity (no spiffe:// URI among its alternative names)",
	Remedy: "make one with: sallyport cert issue NAME --client",
}

// Error is the cause and the remedy in one line.
func (r *Refusal) Error() string {
	if r.Remedy == "" {
		return r.Cause
	}
	return r.Cause + "; " + r.Remedy
}

// Is makes errors.Is compare codes.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Code == r.Code
}

// LogValue logs the three parts as a group.
func (r *Refusal) LogValue() slog.Value {
	return slog.GroupValue(slog.String("code", r.Code), slog.String("cause", r.Cause), slog.String("remedy", r.Remedy))
}

// Proto is r as it travels between components.
func (r *Refusal) Proto() *control.Refusal {
	if r == nil {
		return nil
	}
	return &control.Refusal{Code: r.Code, Cause: r.Cause, Remedy: r.Remedy}
}

// RefusalFromProto reads a peer's refusal. The texts will be printed, so they
// are bounded and what a terminal could obey is taken out. Nil gives nil.
func RefusalFromProto(p *control.Refusal) *Refusal {
	if p == nil {
		return nil
	}
	code := p.GetCode()
	for i := range len(code) {
		if c := code[i]; c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			code = CodeOther
			break
		}
	}
	if code == "" || len(code) > 64 {
		code = CodeOther
	}
	return &Refusal{Code: code, Cause: printable(p.GetCause(), 1024), Remedy: printable(p.GetRemedy(), 1024)}
}

// AsRefusal finds the refusal in an error chain.
func AsRefusal(err error) (*Refusal, bool) {
	var r *Refusal
	ok := errors.As(err, &r)
	return r, ok
}

func refuse(code, cause, remedy string) *Refusal {
	return &Refusal{Code: code, Cause: cause, Remedy: remedy}
}

func refusef(code, remedy, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Cause: fmt.Sprintf(format, args...), Remedy: remedy}
}

// printable keeps at most limit bytes of a text that somebody else wrote and
// replaces what is not printable.
func printable(s string, limit int) string {
	if len(s) > limit {
		cut := limit
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
}
