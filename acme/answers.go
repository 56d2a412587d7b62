package acme

import (
	"errors"
	"io"
	"net/http"
	"reflect"

	"github.com/caddyserver/certmagic"
)

// maxAnswer bounds one answer of the CA; the largest, a chain of certificates, has
// some kilobytes.
const maxAnswer = 1 << 20

var errLargeAnswer = errors.New("the CA's answer is larger than 1 MiB: is it the address of a CA's directory?")

// boundAnswers keeps a CA, or what was taken for one, from filling the memory:
// acmez reads whatever comes. The client that it uses is certmagic's, made where
// nobody can give another one, so that its transport is replaced in place; that
// this still works is tested.
func boundAnswers(i *certmagic.ACMEIssuer) {
	field := reflect.ValueOf(i).Elem().FieldByName("httpClient")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*http.Client]() || field.IsNil() {
		return
	}
	client := (*http.Client)(field.UnsafePointer())
	client.Transport = boundedAnswers{client.Transport}
}

type boundedAnswers struct{ http.RoundTripper }

func (b boundedAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = &boundedBody{answer.Body, maxAnswer}
	}
	return answer, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errLargeAnswer
	}
	return n, err
}
