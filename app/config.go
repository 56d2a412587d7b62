package app

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"sallyport/configs"
	"sallyport/firewall"
)

// configNoun is the settings this machine would run with.
type configNoun struct {
	Check configCheck `cmd:"" help:"Say what is wrong with the settings, without running."`
	Print configPrint `cmd:"" help:"Print every setting, and where its value comes from."`
}

// settingsFlags are all flags of running, and the file as an argument for
// those who write it so.
type settingsFlags struct {
	File string `arg:"" optional:"" type:"path" help:"Settings file; the same as --config."`
	configs.Flags
	jsonFlag
}

func (v *settingsFlags) load(c *cli) (*configs.Settings, configs.Provenance, error) {
	if v.File != "" {
		if v.Config != nil {
			return nil, configs.Provenance{}, wrong("two settings files were given", "leave out --config or the argument")
		}
		v.Config = &v.File
	}
	return c.settings(v.Flags)
}

// settings loads the settings as a run would.
func (c *cli) settings(flags configs.Flags) (*configs.Settings, configs.Provenance, error) {
	s, p, err := configs.Load(flags, configs.Sources{Environ: c.environ, UID: os.Getuid(), ReadSecret: c.readSecret,
		CheckPeers: func(list []string) error { _, err := firewall.ParsePeers(list); return err }})
	if err != nil {
		return nil, p, settingsProblem(err)
	}
	return s, p, nil
}

// settingsProblem lists all that is wrong with the settings, each with its
// remedy.
func settingsProblem(err error) error {
	parts := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		parts = joined.Unwrap()
	}
	list := &problems{}
	for _, part := range parts {
		var e *configs.Error
		if errors.As(part, &e) {
			list.all = append(list.all, wrong(e.From+": "+e.Problem, e.Remedy))
		} else {
			list.all = append(list.all, wrong(part.Error(), ""))
		}
	}
	return list
}

// readSecret asks for a secret, once: settings that are read again get the
// same answer.
func (c *cli) readSecret(prompt string) (string, error) {
	if secret, known := c.asked[prompt]; known {
		return secret, nil
	}
	secret, err := c.ask(prompt)
	if err == nil {
		if c.asked == nil {
			c.asked = map[string]string{}
		}
		c.asked[prompt] = secret
	}
	return secret, err
}

// ask asks without echo on a terminal, else it reads one line of stdin.
func (c *cli) ask(prompt string) (string, error) {
	if f, ok := c.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(c.err, "%s: ", prompt)
		secret, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(c.err)
		return strings.TrimSpace(string(secret)), err
	}
	line, err := bufio.NewReader(io.LimitReader(c.in, 64<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimSpace(line), nil
}

type configCheck struct {
	settingsFlags
}

func (configCheck) Help() string {
	return `Before a restart: everything that is wrong with flags, environment and file at once, each with its place. Nothing is started and nothing is written.

Example:

    sallyport config check --role gateway --config /etc/sallyport.toml`
}

func (v *configCheck) Run(c *cli) error {
	s, _, err := v.load(c)
	if v.JSON {
		found := object{{"valid", err == nil}, {"problems", problemsJSON(err)}, {"warnings", []string{}}}
		if err == nil {
			found[2].value = append([]string{}, s.Warnings...)
		}
		if printed := c.printJSON(found); printed != nil || err == nil {
			return printed
		}
		return quietly(1)
	}
	var list *problems
	if errors.As(err, &list) {
		for _, p := range list.all {
			p.AskedWrongly = false // it was asked rightly; the answer is bad
		}
	}
	if err != nil {
		return err
	}
	for _, w := range s.Warnings {
		c.say("%s", c.warning("warning: "+w))
	}
	c.say("the settings are good for %s", rolesText(s))
	return nil
}

type configPrint struct {
	settingsFlags
}

func (configPrint) Help() string {
	return `When a setting is not what you expect: each value with the flag, variable, or line of the file that it comes from. Secrets are left out.

Example:

    sallyport config print --role all`
}

func (v *configPrint) Run(c *cli) error {
	s, p, err := v.load(c)
	if err != nil {
		return err
	}
	if v.JSON {
		return c.printJSON(p.Rows())
	}
	return configs.Print(c.out, s, p)
}

func rolesText(s *configs.Settings) string {
	names := make([]string, 0, len(s.Roles))
	for _, r := range s.Roles {
		names = append(names, string(r))
	}
	return strings.Join(names, ", ")
}
