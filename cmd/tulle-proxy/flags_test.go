package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func writeRoots(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	other := pem.EncodeToMemory(&pem.Block{Type: "SOMETHING ELSE", Bytes: []byte("x")})
	path := filepath.Join(t.TempDir(), "roots.pem")
	b := append(other, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// socketpair returns our end, and the number of the end that is passed on.
// Whoever wraps that number owns it.
func socketpair(t *testing.T) (*os.File, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(pair[0]), "parent")
	t.Cleanup(func() { ours.Close() })
	return ours, pair[1]
}

// commandLine is a good one, with some flags changed: "flag=value".
func commandLine(t *testing.T, roots string, changes ...string) []string {
	t.Helper()
	_, fd := socketpair(t)
	flags := map[string]string{
		"workload": "web-2", "service": "web", "identity": "spiffe://tulle.local/ns/default/sa/web", "control": "10.84.0.1:4190",
		"roots-file": roots, "networks": "10.84.0.0/16,fd84::/64", "redirect": "nftables", "token-fd": strconv.Itoa(fd),
	}
	for _, change := range changes {
		name, value, _ := strings.Cut(change, "=")
		flags[name] = value
	}
	var args []string
	for name, value := range flags {
		args = append(args, fmt.Sprintf("--%s=%s", name, value))
	}
	return args
}

func TestGoodFlags(t *testing.T) {
	c, err := parse(commandLine(t, writeRoots(t), "policy=strict", "log-level=debug"), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Workload != "web-2" || c.Service != "web" || c.ID.Account != "web" || c.Control != "10.84.0.1:4190" || !c.Strict || c.Redirect != "nftables" ||
		len(c.Roots) != 1 || fmt.Sprint(c.Networks) != "[10.84.0.0/16 fd84::/64]" || !c.Log.Enabled(t.Context(), slog.LevelDebug) {
		t.Errorf("%+v", c)
	}
	c, err = parse(commandLine(t, writeRoots(t), "networks=10.84.3.7/16,", "address=10.84.0.2", "log-level=warn"), &bytes.Buffer{})
	if err != nil || c.Strict || fmt.Sprint(c.Addresses) != "[10.84.0.2]" || fmt.Sprint(c.Networks) != "[10.84.0.0/16]" || c.Log.Enabled(t.Context(), slog.LevelInfo) {
		t.Errorf("%+v, %v", c, err)
	}
	c.Ready() // to nobody
}

func TestFlagsInAPod(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	args := commandLine(t, writeRoots(t), "token-fd=-1", "token-file="+token, "policy=ask", "workload=web-5d4f8c7b9-x2x4z",
		"service=web.shop", "redirect=cni", "control=tulle-control.tulle-system.svc:4190")
	c, err := parse(append(args, "-probe=web/readiness=http://:8080/healthz", "-probe=web/liveness=tcp://:8080"), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Strict || !c.AskPolicy || len(c.Probes) != 2 || c.Probes[1].Scheme != "tcp" {
		t.Errorf("%+v", c)
	}
	if _, err := c.Token(t.Context()); err == nil {
		t.Error("a token from a file that is not there")
	}
	for _, content := range []string{"one\n", "two"} { // the kubelet replaces it
		if err := os.WriteFile(token, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Token(t.Context()); err != nil || got != strings.TrimSpace(content) {
			t.Errorf("%q, %v", got, err)
		}
	}
	if err := os.WriteFile(token, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Token(t.Context()); err == nil {
		t.Errorf("%q of an empty file", got)
	}
}

func TestBadFlags(t *testing.T) {
	roots := writeRoots(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	rubbish := filepath.Join(t.TempDir(), "rubbish.pem")
	for path, content := range map[string]string{empty: "", rubbish: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		change string
		want   []string // all of it is said
	}{
		{"workload=", []string{"workload", "1 to 253 characters"}},
		{"workload=Web_2", []string{"workload", "Web_2"}},
		{"service=a..b", []string{"service", "1 to 63 characters"}},
		{"token-file=/x", []string{"-token-fd, -token-file", "only one"}},
		{"identity=", []string{"-identity", "spiffe://"}},
		{"identity=spiffe://tulle.local/ns/default/sa/web/", []string{"-identity", "NAMESPACE"}},
		{"control=", []string{"control"}},
		{"control=10.84.0.1", []string{"control", "port"}},
		{"roots-file=", []string{"-roots-file", "must be given"}},
		{"roots-file=/nonexistent/roots.pem", []string{"-roots-file", "/nonexistent/roots.pem"}},
		{"roots-file=" + empty, []string{"-roots-file", "no certificate"}},
		{"roots-file=" + rubbish, []string{"roots", "parse"}},
		{"networks=10.84.0.0", []string{"-networks", "10.84.0.0"}},
		{"networks=10.84.0.0/16,x", []string{"-networks", "x"}},
		{"address=10.84.0.2/16", []string{"-address", "10.84.0.2/16"}},
		{"policy=loose", []string{"-policy", "loose", "permissive or strict"}},
		{"token-fd=-1", []string{"-token-fd", "must be given"}},
		{"token-fd=999999", []string{"-token-fd", "999999", "not open"}},
		{"token-fd=x", []string{"token-fd", "-h"}},
		{"ready-fd=999999", []string{"-ready-fd", "999999", "not open"}},
		{"log-level=loud", []string{"log-level", "loud"}},
		{"colour=blue", []string{"colour", "-h"}},
	} {
		var stderr bytes.Buffer
		if code := run(commandLine(t, roots, tt.change), &stderr); code != 2 {
			t.Errorf("%s: exit %d, want 2", tt.change, code)
		}
		for _, want := range tt.want {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%s: %q does not say %q", tt.change, stderr.String(), want)
			}
		}
		if lines := strings.Count(stderr.String(), "\n"); lines != 1 {
			t.Errorf("%s: %d lines: %s", tt.change, lines, stderr.String())
		}
	}
}

func TestAllThatIsWrongIsSaid(t *testing.T) {
	var stderr bytes.Buffer
	if code := run([]string{"extra"}, &stderr); code != 2 {
		t.Errorf("exit %d", code)
	}
	for _, want := range []string{`"extra"`, "-identity", "-roots-file", "-token-fd"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("%q does not say %q", stderr.String(), want)
		}
	}
}

func TestHelp(t *testing.T) {
	var stderr bytes.Buffer
	if code := run([]string{"-h"}, &stderr); code != 0 || !strings.Contains(stderr.String(), "-token-fd") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
}
