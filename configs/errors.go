package configs

import (
	"errors"
	"fmt"
)

// Error is one thing wrong with the settings.
type Error struct {
	Setting string // the flag without its dashes
	From    string // flag --x, environment X, FILE:LINE:COLUMN
	Problem string
	Remedy  string
}

// Error names the origin, the problem and the remedy.
func (e *Error) Error() string { return e.From + ": " + e.Problem + "; " + e.Remedy }

// origin is where a value came from.
type origin struct {
	kind originKind
	name string // --x, SALLYPORT_X, x
	file string
	pos  Position
	role Role // of the table, "" for a top-level key
}

type originKind uint8

const (
	fromDefault originKind = iota
	fromCredential
	fromFile
	fromEnviron
	fromFlag
)

// String is how messages and Print name it.
func (o origin) String() string {
	switch o.kind {
	case fromFlag:
		return "flag " + o.name
	case fromEnviron:
		return "environment " + o.name
	case fromCredential:
		return "systemd credential " + o.name
	case fromFile:
		return fmt.Sprintf("%s:%d", o.file, o.pos.Line)
	}
	return "default"
}

// long is String with the column and, for a file, the key.
func (o origin) long() string {
	if o.kind == fromFile {
		return fmt.Sprintf("%s:%d:%d: %s", o.file, o.pos.Line, o.pos.Column, o.name)
	}
	return o.String()
}

// problems gathers what is wrong, so that all of it is reported at once.
type problems struct{ errs []error }

func (p *problems) add(setting string, from origin, problem, remedy string) {
	if from.kind == fromDefault {
		from = origin{kind: fromFlag, name: "--" + setting}
	}
	e := &Error{Setting: setting, From: from.long(), Problem: problem, Remedy: remedy}
	for _, have := range p.errs { // one flag read for two roles is one mistake
		if have.Error() == e.Error() {
			return
		}
	}
	p.errs = append(p.errs, e)
}

func (p *problems) err() error { return errors.Join(p.errs...) }

// article puts a or an before the kind of a value; what is none of the usual
// kinds is a number with a point or a date.
func article(kind string) string {
	switch kind {
	case "integer":
		return "an integer"
	case "other":
		return "a number or a date"
	}
	return "a " + kind
}
