package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"sallyport/configs"
)

// healthVerb asks the health listener of the process on this host; it is what
// probes and the image's HEALTHCHECK run.
type healthVerb struct {
	Address string        `arg:"" optional:"" name:"addr" help:"The --health-address of the process (default 127.0.0.1:8080; SALLYPORT_HEALTH_ADDRESS)."`
	Live    bool          `help:"Ask only whether it is alive, not whether it is ready."`
	Timeout time.Duration `default:"3s" placeholder:"3s" help:"How long to wait (default 3s)."`
	jsonFlag
}

func (healthVerb) Help() string {
	return `When a probe, or you, want to know whether a process is ready: exit status 0 if every role in it is, else 1 and which role is not and why.

Examples:

    sallyport health
    sallyport health 127.0.0.1:9100 --live`
}

func (v *healthVerb) Run(c *cli) error {
	address := v.Address
	if address == "" {
		address = c.env("SALLYPORT_HEALTH_ADDRESS")
	}
	if address == "" {
		address = "127.0.0.1:8080"
	}
	target, err := reach(address)
	if err != nil {
		return wrong("health: "+err.Error(), "write HOST:PORT, as in --health-address")
	}
	if v.Address == "" {
		target = besidePort(target, c.env("PORT"), configs.HealthBeside)
	}
	path := "/readyz"
	if v.Live {
		path = "/healthz"
	}
	ctx, cancel := context.WithTimeout(c.ctx, v.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target+path, nil)
	if err != nil {
		return wrong("health: "+err.Error(), "write HOST:PORT, as in --health-address")
	}
	if v.JSON {
		req.Header.Set("Accept", "application/json")
	}
	transport := &http.Transport{DisableKeepAlives: true} // no proxy from the environment
	res, err := transport.RoundTrip(req)
	if err != nil {
		cause, remedy := err.Error(), "is it running, with this --health-address?"
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			cause = "nothing listens there"
		case errors.Is(err, context.DeadlineExceeded):
			cause = "no answer within " + v.Timeout.String()
		}
		if v.JSON {
			if err := c.printJSON(object{{"ready", false}, {"cause", cause}}); err != nil {
				return err
			}
		}
		return failed("health: "+target+": "+cause, remedy)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return failed("health: "+target+": "+err.Error(), "")
	}
	if v.JSON && json.Valid(body) {
		_, err = c.out.Write(body)
	} else {
		for line := range strings.Lines(string(body)) {
			fmt.Fprintln(c.out, oneLine(strings.TrimRight(line, "\n")))
		}
	}
	if err == nil && res.StatusCode != http.StatusOK {
		return quietly(1)
	}
	return err
}

// reach is the address at which a client on this host reaches a listener: a
// wildcard becomes loopback.
func reach(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("%q is not an address", listen)
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port), nil
}

// besidePort is where health is instead of target: a proxy that a platform gives
// target's port by PORT has moved it, and other roles have not.
func besidePort(target, port string, beside func(port string) string) string {
	if _, own, _ := net.SplitHostPort(target); port == "" || own != port {
		return target
	}
	moved := beside(port)
	nc, err := net.DialTimeout("tcp", moved, time.Second)
	if err != nil {
		return target
	}
	nc.Close()
	return moved
}
