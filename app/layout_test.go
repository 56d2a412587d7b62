package app

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// TestTopLevelNames keeps the listing of the repository what it was agreed to
// be.
func TestTopLevelNames(t *testing.T) {
	allowed := map[string]bool{}
	for name := range strings.FieldsSeq("main.go app roles acme store firewall configs go.mod go.sum Dockerfile README.md docs") {
		allowed[name] = true
	}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	ignored := ignoredNames(t)
	for _, e := range entries {
		name := e.Name()
		if !allowed[name] && !strings.HasPrefix(name, ".") && !ignored(name) {
			t.Errorf("%s is at the top level of the repository: put it into one of the folders there", name)
		}
		delete(allowed, name)
	}
	delete(allowed, "docs") // git keeps no empty folder
	for name := range allowed {
		t.Errorf("%s is missing at the top level of the repository", name)
	}
}

// ignoredNames reads the simple patterns of .gitignore: what it names is not
// part of the repository.
func ignoredNames(t *testing.T) func(string) bool {
	text, err := os.ReadFile("../.gitignore")
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) bool {
		for pattern := range strings.FieldsSeq(string(text)) {
			if ok, _ := path.Match(strings.Trim(pattern, "/"), name); ok {
				return true
			}
		}
		return false
	}
}

// ranks is the direction of imports: a package imports only what stands in a
// lower rank, so packages of one rank never import each other.
var ranks = map[string]int{
	"sallyport/configs":            0,
	"sallyport/configs/fault":      0,
	"sallyport/roles/control":      0,
	"sallyport/roles/gateway/demo": 0,
	"sallyport/firewall/netns":     0,
	"sallyport/roles/policy":       1,
	"sallyport/acme/pki":           1,
	"sallyport/firewall":           1,
	"sallyport/roles/policy/token": 2,
	"sallyport/roles/link":         2,
	"sallyport/roles/relay":        2,
	"sallyport/roles/console":      2,
	"sallyport/acme":               2,
	"sallyport/acme/acmetest":      1,
	"sallyport/store":              2,
	"sallyport/roles/builtin":      3,
	"sallyport/roles/core":         4,
	"sallyport/roles/proxy":        4,
	"sallyport/roles/gateway":      4,
	"sallyport/app":                5,
	"sallyport/app/e2e":            5,
	"sallyport":                    6,
}

type listedPackage struct {
	ImportPath string
	Doc        string
	Imports    []string
}

func listPackages(t *testing.T) []listedPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Doc,Imports", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []listedPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p listedPackage
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < 10 {
		t.Fatalf("go list found %d packages only", len(list))
	}
	return list
}

// TestImportDirection: nothing imports upwards or sideways.
func TestImportDirection(t *testing.T) {
	for _, wrong := range wrongImports(listPackages(t)) {
		t.Error(wrong)
	}
}

func wrongImports(list []listedPackage) (wrong []string) {
	for _, p := range list {
		rank, known := ranks[p.ImportPath]
		if !known {
			wrong = append(wrong, p.ImportPath+" has no place in the order of imports: give it a rank")
			continue
		}
		for _, i := range p.Imports {
			if r, ours := ranks[i]; ours && r >= rank {
				wrong = append(wrong, p.ImportPath+" imports "+i+", which does not stand below it")
			}
		}
	}
	return wrong
}

// TestImportDirectionBites: the guard finds what it is there for.
func TestImportDirectionBites(t *testing.T) {
	wrong := wrongImports([]listedPackage{
		{ImportPath: "sallyport/store", Imports: []string{"fmt", "sallyport/acme/pki"}},
		{ImportPath: "sallyport/roles/proxy", Imports: []string{"sallyport/roles/core"}},
		{ImportPath: "sallyport/acme/pki", Imports: []string{"sallyport/store"}},
		{ImportPath: "sallyport/roles/util"},
	})
	if len(wrong) != 3 {
		t.Errorf("found %q", wrong)
	}
}

// TestPackageComments: whoever reads only package comments understands the
// product.
func TestPackageComments(t *testing.T) {
	for _, p := range listPackages(t) {
		if generated := path.Base(p.ImportPath) == "demo"; p.Doc == "" && !generated {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestFileSizes: a file of 500 lines holds two subjects.
func TestFileSizes(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n > 500 {
			t.Errorf("%s has %d lines: what is the second subject?", f, n)
		}
	}
}
