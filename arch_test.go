// Package tulle_test keeps the laws of the repository's layout: who may import
// whom, how long things may get, and how big the binaries are.
package tulle_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/tulle-mesh/tulle"

// A law says that no package matching `of` (and none of `but`) may reach a
// package matching `never`. Patterns are those of the go command: "x/..." is x
// and all below it; "std" is the standard library; ours are relative to the module.
type law struct {
	why    string
	of     []string
	but    []string
	reach  reach
	never  []string
	unless []string // exceptions to `never`
}

// reach is how far a law looks.
type reach bool

const (
	imports reach = false // what the package's own files import
	links   reach = true  // all that comes with it
)

var (
	kubernetes = []string{"k8s.io/...", "sigs.k8s.io/..."}
	kernel     = []string{
		"github.com/cilium/ebpf/...", "github.com/google/nftables/...", "github.com/coreos/go-iptables/...",
		"github.com/mdlayher/netlink/...", "github.com/vishvananda/netlink/...", "github.com/vishvananda/netns/...",
	}
)

var laws = []law{
	{why: "components share mesh/ and api/ only", of: []string{"proxy/..."}, reach: links,
		never: []string{"identity/...", "discovery/...", "inject/...", "cni/...", "dashboard/...", "cmd/..."}},
	{why: "components share mesh/ and api/ only", of: []string{"identity/..."}, reach: links,
		never: []string{"proxy/...", "discovery/...", "inject/...", "cni/...", "dashboard/...", "cmd/..."}},
	{why: "components share mesh/ and api/ only", of: []string{"discovery/..."}, reach: links,
		never: []string{"proxy/...", "identity/...", "inject/...", "cni/...", "dashboard/...", "cmd/..."}},
	{why: "components share mesh/ and api/ only", of: []string{"inject/..."}, reach: links,
		never: []string{"proxy/...", "identity/...", "discovery/...", "cni/...", "dashboard/...", "cmd/..."}},
	{why: "components share mesh/ and api/ only", of: []string{"cni/..."}, reach: links,
		never: []string{"proxy/...", "identity/...", "discovery/...", "inject/...", "dashboard/...", "cmd/..."}},
	{why: "components share mesh/ and api/ only", of: []string{"dashboard/..."}, reach: links,
		never: []string{"proxy/...", "identity/...", "discovery/...", "inject/...", "cni/...", "cmd/..."}},

	{why: "mesh/ is words only", of: []string{"mesh/..."}, reach: links,
		never: []string{"..."}, unless: []string{"std", "mesh/..."}},
	{why: "api/ is generated, and leans on nothing of ours", of: []string{"api/..."}, reach: links,
		never: []string{module + "/..."}, unless: []string{"api/..."}},

	{why: "Kubernetes is a source, not a mode", of: []string{"..."}, but: []string{".../kube", "cmd/tulle/...", "cmd/tulle-control/...", "test/..."}, reach: imports,
		never: kubernetes},
	{why: "Kubernetes is a source, not a mode", of: []string{"proxy/...", "cni/...", "cmd/tulle-proxy/..."}, reach: links,
		never: kubernetes},
	{why: "the proxy handles bytes, never the kernel's tables", of: []string{"proxy/...", "cmd/tulle-proxy/..."}, reach: links,
		never: kernel},
	{why: "only cni/redirect changes where packets go", of: []string{"..."}, but: []string{"cni/redirect/...", "cmd/tulle/network/...", "test/..."}, reach: imports,
		never: []string{"github.com/google/nftables/...", "github.com/cilium/ebpf/..."}},

	{why: "tests stay out of the product", of: []string{"..."}, but: []string{"test/..."}, reach: links,
		never: []string{"testing", "test/...", "github.com/rogpeppe/go-internal/...", "github.com/google/go-cmp/..."}},
	{why: "one HTTP stack on the data path, and it is ours", of: []string{"proxy/http1/...", "proxy/balance/..."}, reach: imports,
		never: []string{"net/http/..."}},
}

// Lengths, in lines.
const (
	longestFile     = 800
	longestFunction = 150
)

// badNames say nothing about what is inside.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "types", "base", "misc", "shared"}

// pkg is what `go list -json` tells of a package.
type pkg struct {
	Dir, ImportPath, Name, Doc string
	Standard                   bool
	GoFiles, CgoFiles          []string
	TestGoFiles, XTestGoFiles  []string
	Imports, Deps              []string
}

// inModule returns the package's path relative to ours, and whether it is ours.
func inModule(importPath string) (string, bool) {
	rel, ok := strings.CutPrefix(importPath, module+"/")
	return rel, ok || importPath == module
}

func TestLayout(t *testing.T) {
	all := list(t)
	standard := map[string]bool{}
	for _, p := range all {
		standard[p.ImportPath] = p.Standard
	}
	match := func(patterns []string, importPath string) bool {
		return slices.ContainsFunc(patterns, func(pattern string) bool {
			if pattern == "std" {
				return standard[importPath]
			}
			rel, ours := inModule(importPath)
			return matches(pattern, importPath) || ours && matches(pattern, rel)
		})
	}
	for _, p := range ours(all) {
		for _, l := range laws {
			if !match(l.of, p.ImportPath) || match(l.but, p.ImportPath) {
				continue
			}
			reached := p.Imports
			if l.reach == links {
				reached = p.Deps
			}
			for _, other := range reached {
				if match(l.never, other) && !match(l.unless, other) {
					t.Errorf("%s reaches %s; but %s", p.ImportPath, other, l.why)
				}
			}
		}
	}
}

// matches tells whether an import path fits a pattern such as "a/b", "a/..." or ".../z".
func matches(pattern, importPath string) bool {
	if pattern == "..." {
		return true
	}
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return importPath == below || strings.HasPrefix(importPath, below+"/")
	}
	if last, ok := strings.CutPrefix(pattern, ".../"); ok {
		return path.Base(importPath) == last
	}
	return importPath == pattern
}

func TestEachPackageSaysWhatItIs(t *testing.T) {
	for _, p := range ours(list(t)) {
		if p.Doc == "" && len(p.GoFiles) > 0 && !generated(t, p) {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		if slices.Contains(badNames, p.Name) {
			t.Errorf("%s: the name %q does not say what is inside", p.ImportPath, p.Name)
		}
	}
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	eachFile(t, func(name string, fset *token.FileSet, file *ast.File, _ pkg) {
		line := func(p token.Pos) int { return fset.Position(p).Line }
		if n := line(file.FileEnd); n > longestFile {
			t.Errorf("%s has %d lines, at most %d are allowed", name, n, longestFile)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if f, ok := n.(*ast.FuncDecl); ok {
				if lines := line(f.End()) - line(f.Pos()) + 1; lines > longestFunction {
					t.Errorf("%s: %s has %d lines, at most %d are allowed", name, f.Name.Name, lines, longestFunction)
				}
			}
			return true
		})
	})
}

func TestMeshStartsNoGoroutine(t *testing.T) {
	eachFile(t, func(name string, fset *token.FileSet, file *ast.File, p pkg) {
		rel, _ := inModule(p.ImportPath)
		if !matches("mesh/...", rel) || strings.HasSuffix(name, "_test.go") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s starts a goroutine; mesh/ is words only", fset.Position(g.Pos()))
			}
			return true
		})
	})
}

func TestOnlyCommandsReadTheEnvironment(t *testing.T) {
	readers := []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"}
	eachFile(t, func(name string, fset *token.FileSet, file *ast.File, p pkg) {
		rel, _ := inModule(p.ImportPath)
		if matches("cmd/...", rel) || matches("test/...", rel) || strings.HasSuffix(name, "_test.go") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "os" && slices.Contains(readers, s.Sel.Name) {
					t.Errorf("%s reads the environment; pass it in from cmd/", fset.Position(s.Pos()))
				}
			}
			return true
		})
	})
}

// eachFile parses every hand-written Go file of the module, tests included.
func eachFile(t *testing.T, visit func(name string, fset *token.FileSet, file *ast.File, p pkg)) {
	t.Helper()
	for _, p := range ours(list(t)) {
		for _, base := range slices.Concat(p.GoFiles, p.CgoFiles, p.TestGoFiles, p.XTestGoFiles) {
			fset := token.NewFileSet()
			name := filepath.Join(p.Dir, base)
			file, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if !ast.IsGenerated(file) {
				visit(name, fset, file, p)
			}
		}
	}
}

// generated tells whether every file of the package is.
func generated(t *testing.T, p pkg) bool {
	t.Helper()
	return !slices.ContainsFunc(p.GoFiles, func(base string) bool {
		src, err := os.ReadFile(filepath.Join(p.Dir, base))
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), base, src, parser.PackageClauseOnly|parser.ParseComments)
		return err != nil || !ast.IsGenerated(file)
	})
}

// list asks the go command for our packages and all they depend on.
func list(t *testing.T) []pkg {
	t.Helper()
	fields := "Dir,ImportPath,Name,Doc,Standard,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Imports,Deps"
	out := command(t, "go", "list", "-deps", "-json="+fields, "./...")
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func ours(all []pkg) []pkg {
	return slices.DeleteFunc(slices.Clone(all), func(p pkg) bool {
		_, ok := inModule(p.ImportPath)
		return !ok
	})
}

func command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, importPath string
		want                bool
	}{
		{"cni/...", "cni", true},
		{"cni/...", "cni/redirect", true},
		{"cni/...", "cniplugin", false},
		{".../kube", "discovery/kube", true},
		{".../kube", "discovery/kube/inner", false},
		{"mesh", "mesh", true},
		{"mesh", "mesh/x", false},
		{"...", "anything/at/all", true},
	} {
		if got := matches(c.pattern, c.importPath); got != c.want {
			t.Errorf("matches(%q, %q) = %v", c.pattern, c.importPath, got)
		}
	}
}
