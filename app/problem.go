package app

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sallyport/acme/pki"
	"sallyport/roles/control"
)

// problem is an error as a person reads it: what happened to what and why, and
// what to do next.
type problem struct {
	What         string
	Remedy       string
	AskedWrongly bool // exit status 2 instead of 1
	cause        error
}

func (p *problem) Error() string {
	if p.Remedy == "" {
		return p.What
	}
	return p.What + " (" + strings.ReplaceAll(p.Remedy, "\n", "; ") + ")"
}

func (p *problem) Unwrap() error { return p.cause }

// problems are several that were found at once.
type problems struct{ all []*problem }

func (l *problems) Error() string {
	texts := make([]string, 0, len(l.all))
	for _, p := range l.all {
		texts = append(texts, p.Error())
	}
	return strings.Join(texts, "\n")
}

// bareSecret is a join token or an API key.
var bareSecret = regexp.MustCompile(`\b(sp1\.|spk_)[A-Za-z0-9_-]{16,}`)

// masked takes secrets out of a message: who puts one where it does not belong
// finds his words in the error, and errors are kept in logs.
func masked(s string) string { return bareSecret.ReplaceAllString(s, "${1}…") }

// problemsJSON is what is wrong, for scripts.
func problemsJSON(err error) []object {
	list := []object{}
	if err == nil {
		return list
	}
	var l *problems
	if !errors.As(err, &l) {
		l = &problems{all: []*problem{asProblem(err)}}
	}
	for _, p := range l.all {
		list = append(list, object{{"problem", masked(p.What)}, {"remedy", masked(p.Remedy)}})
	}
	return list
}

// failed is a problem of the world.
func failed(what, remedy string) *problem { return &problem{What: what, Remedy: remedy} }

// wrong is a problem of the question.
func wrong(what, remedy string) *problem {
	return &problem{What: what, Remedy: remedy, AskedWrongly: true}
}

// wrongf is wrong without a remedy beyond what its text says.
func wrongf(format string, args ...any) *problem {
	return wrong(fmt.Sprintf(format, args...), "")
}

// quietly ends with a status when everything has been said already.
type quietly int

func (q quietly) Error() string { return fmt.Sprintf("exit status %d", int(q)) }

// asProblem makes any error presentable.
func asProblem(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	if r, ok := pki.AsRefusal(err); ok {
		return &problem{What: r.Cause, Remedy: r.Remedy, cause: err}
	}
	return &problem{What: err.Error(), cause: err}
}

// fromCore turns the answer of the running core into a problem.
func fromCore(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	p := &problem{What: st.Message(), AskedWrongly: st.Code() == codes.InvalidArgument, cause: err}
	for _, d := range st.Details() {
		if r, ok := d.(*control.Refusal); ok && r.GetRemedy() != "" {
			p.Remedy = r.GetRemedy()
		}
	}
	switch st.Code() {
	case codes.Unimplemented:
		p.What, p.Remedy = "the running core does not know this verb", "it is an older version: compare sallyport version with sallyport status"
	case codes.DeadlineExceeded:
		p.What, p.Remedy = "core did not answer in time", "look at its log"
	}
	return p
}
