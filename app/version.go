package app

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is the release, set by the linker: -X sallyport/app.Version=…
var Version = ""

// version is what this binary calls itself: the release, else what the Go tool
// recorded of the source it was built from.
func version() string {
	if Version != "" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = "-" + s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	return "devel" + revision + dirty
}

type versionVerb struct {
	jsonFlag
}

func (versionVerb) Help() string {
	return `Example:

    sallyport version`
}

func (v *versionVerb) Run(c *cli) error {
	platform := runtime.GOOS + "/" + runtime.GOARCH
	if v.JSON {
		return c.printJSON(object{{"version", version()}, {"go", runtime.Version()}, {"platform", platform}})
	}
	_, err := fmt.Fprintf(c.out, "sallyport %s (%s, %s)\n", version(), runtime.Version(), platform)
	return err
}
