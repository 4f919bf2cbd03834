package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadmeSaysWhatWasMeasured keeps the README's table the one that the
// committed results make.
func TestReadmeSaysWhatWasMeasured(t *testing.T) {
	saved, err := read(filepath.Join("results", "host.json"))
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if table := saved.goals(); table == "" || !strings.Contains(string(readme), table) {
		t.Errorf("the README lacks this table:\n%s", table)
	}
}
