package relay

// Front is what an HTTP proxy before us said of a caller.
type Front struct {
	For   string // x-forwarded-for, several joined by commas
	Proto string // x-forwarded-proto, likewise
}

// Front is what the front that brought the call said of its caller; nothing
// unless Options.Front is set.
func (c *Call) Front() Front {
	if c.front == nil {
		return Front{}
	}
	return *c.front
}

// maxFrontText bounds what is kept of one of its fields: the end counts.
const maxFrontText = 2 << 10

func frontOf(header []Field) *Front {
	f := new(Front)
	join := func(to *string, value string) {
		if *to != "" {
			value = *to + "," + value
		}
		*to = value[max(0, len(value)-maxFrontText):]
	}
	for i := range header {
		switch header[i].Name {
		case "x-forwarded-for":
			join(&f.For, header[i].Value)
		case "x-forwarded-proto":
			join(&f.Proto, header[i].Value)
		}
	}
	return f
}
