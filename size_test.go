package tulle_test

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "agree to the binaries as they are now (./just size --update)")

// tolerance is how far a binary's size may stray from the agreed one, in
// percent: compilers differ a little between patch releases.
const tolerance = 3.0

// TestBinaries compares every binary of cmd/ with testdata/binaries: its size
// and the packages it links, so that growth is a diff that somebody reads.
func TestBinaries(t *testing.T) {
	for _, p := range ours(list(t)) {
		rel, _ := inModule(p.ImportPath)
		if p.Name != "main" || path.Dir(rel) != "cmd" {
			continue
		}
		t.Run(path.Base(rel), func(t *testing.T) {
			checkBinary(t, p, filepath.Join("testdata", "binaries", path.Base(rel)))
		})
	}
}

// buildTags are those of the justfile's goflags.
const buildTags = "-tags=grpcnotrace"

func checkBinary(t *testing.T, p pkg, golden string) {
	built := filepath.Join(t.TempDir(), "binary")
	command(t, "go", "build", "-buildvcs=false", "-trimpath", buildTags, "-ldflags=-s -w", "-o", built, p.ImportPath)
	info, err := os.Stat(built)
	if err != nil {
		t.Fatal(err)
	}
	size, packages := info.Size(), linked(t, p)
	if *update {
		writeGolden(t, golden, size, packages)
	}
	agreedSize, agreed, err := readGolden(golden)
	if err != nil {
		t.Fatalf("%v (to agree to the binaries as they are: ./just size --update)", err)
	}

	t.Logf("%.2f MB, %d packages outside the standard library; agreed: %.2f MB, %d packages",
		float64(size)/1e6, len(packages), float64(agreedSize)/1e6, len(agreed))
	if drift := 100 * (float64(size)/float64(agreedSize) - 1); drift > tolerance || drift < -tolerance {
		t.Errorf("size is %d bytes, %+.1f %% from the agreed %d (to agree: ./just size --update)", size, drift, agreedSize)
	}
	for _, name := range packages {
		if !slices.Contains(agreed, name) {
			t.Errorf("links %s, which it did not before (to agree: ./just size --update)", name)
		}
	}
	for _, name := range agreed {
		if !slices.Contains(packages, name) {
			t.Errorf("no longer links %s: well done (to agree: ./just size --update)", name)
		}
	}
}

// linked returns the sorted packages of a binary, the standard library left out.
func linked(t *testing.T, p pkg) []string {
	t.Helper()
	out := command(t, "go", "list", buildTags, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", p.ImportPath)
	names := strings.Fields(string(out))
	slices.Sort(names)
	return names
}

// A golden file is the size on the first line, then one package per line.
func writeGolden(t *testing.T, name string, size int64, packages []string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	content := fmt.Sprintf("%d bytes\n%s\n", size, strings.Join(packages, "\n"))
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readGolden(name string) (size int64, packages []string, err error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Scan()
	if _, err := fmt.Sscanf(lines.Text(), "%d bytes", &size); err != nil || size <= 0 {
		return 0, nil, fmt.Errorf("%s: first line is not \"N bytes\"", name)
	}
	for lines.Scan() {
		packages = append(packages, lines.Text())
	}
	return size, packages, lines.Err()
}
