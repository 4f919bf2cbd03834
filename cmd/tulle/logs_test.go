package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestFollowCrossesRotation writes to a log that is replaced between two reads.
func TestFollowCrossesRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	write("one\n")
	var out strings.Builder
	var once sync.Once
	follow := tail{path: path, out: &out, ended: func() bool {
		first := false
		once.Do(func() {
			first = true
			write("two\n")
			if err := os.Rename(path, path+".1"); err != nil {
				t.Error(err)
			}
			write("three\n")
		})
		return !first
	}}
	if err := follow.follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "one\ntwo\nthree\n" {
		t.Errorf("got %q", got)
	}
}
