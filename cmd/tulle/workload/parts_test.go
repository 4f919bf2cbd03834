package workload

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestPrefixerKeepsLinesWhole(t *testing.T) {
	var out bytes.Buffer
	p := &prefixer{mu: &sync.Mutex{}, out: &out, prefix: []byte("a | ")}
	for _, s := range []string{"one\ntw", "o\n", "\n", "end"} {
		if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	p.flush()
	p.flush()
	if got, want := out.String(), "a | one\na | two\na | \na | end\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	out.Reset()
	_, _ = p.Write(bytes.Repeat([]byte("x"), maxLine))
	if out.Len() != maxLine+len("a | \n") {
		t.Errorf("a line without end: %d bytes are out", out.Len())
	}
}

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	l.max = 10
	for _, s := range []string{"12345678", "abc", "defg"} {
		if _, err := l.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{path: "abcdefg", path + ".1": "12345678"} {
		if got, err := os.ReadFile(p); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", p, got, err)
		}
	}
	if _, err := l.Write([]byte("x")); err == nil {
		t.Error("wrote to a closed log")
	}
}

func TestLookupUser(t *testing.T) {
	for _, tc := range []struct {
		spec     string
		uid, gid uint32
		wantErr  string
	}{
		{"nobody", 65534, 65534, ""},
		{"65534", 65534, 65534, ""},
		{"nobody:root", 65534, 0, ""},
		{"12345:678", 12345, 678, ""},
		{"12345", 12345, 12345, ""},
		{"2102", 0, 0, "the proxy's own user"},
		{"no-such-user", 0, 0, "there is none of that name"},
		{"root:no-such-group", 0, 0, "there is none of that name"},
		{"-1", 0, 0, "-1"},
		{"4294967295", 0, 0, "4294967295"},
	} {
		t.Run(tc.spec, func(t *testing.T) {
			a, err := lookupUser(tc.spec)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || a.credential.Uid != tc.uid || a.credential.Gid != tc.gid {
				t.Errorf("got %+v, %v", a.credential, err)
			}
		})
	}
}

func TestServed(t *testing.T) {
	at := func(list ...string) (addrs []netip.AddrPort) {
		for _, s := range list {
			addrs = append(addrs, netip.MustParseAddrPort(s))
		}
		return addrs
	}
	for _, tc := range []struct {
		name      string
		ports     []uint16
		listeners []netip.AddrPort
		all       bool
		hidden    []uint16
	}{
		{"nobody", []uint16{80}, nil, false, nil},
		{"everywhere", []uint16{80}, at("0.0.0.0:80"), true, nil},
		{"IPv6", []uint16{80}, at("[::]:80"), true, nil},
		{"another port", []uint16{80}, at("0.0.0.0:81"), false, nil},
		{"one of two", []uint16{80, 81}, at("0.0.0.0:81"), false, nil},
		{"loopback", []uint16{80}, at("127.0.0.1:80", "[::1]:80"), false, []uint16{80}},
		{"both", []uint16{80}, at("127.0.0.1:80", "10.84.0.2:80"), true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if all, hidden := served(tc.ports, tc.listeners); all != tc.all || !slices.Equal(hidden, tc.hidden) {
				t.Errorf("got %v %v", all, hidden)
			}
		})
	}
}

func TestTopmost(t *testing.T) {
	const mountinfo = `20 1 0:18 / / rw - ext4 x rw
21 20 0:19 / /sys rw - sysfs sysfs rw
22 21 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw
23 22 0:21 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
24 21 0:22 / /sys/fs/bpf rw - bpf bpf rw
25 20 0:23 / /system rw - tmpfs tmpfs rw
`
	if got, want := topmost(mountinfo, "/sys/"), []string{"/sys/fs/cgroup", "/sys/fs/bpf"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := lookPath("tool", "/nowhere:"+dir); err != nil || got != filepath.Join(dir, "tool") {
		t.Errorf("got %q, %v", got, err)
	}
	for name, code := range map[string]int{"data": CodeNotExecutable, "none": CodeNotFound} {
		_, err := lookPath(name, dir)
		if startCode(err) != code {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAlive(t *testing.T) {
	start, ok := StartTime(os.Getpid())
	if !ok || start == 0 || !Alive(os.Getpid(), start) {
		t.Errorf("own start time: %d, %v", start, ok)
	}
	if Alive(os.Getpid(), start+1) {
		t.Error("a pid that came round again is taken for the old process")
	}
	if _, ok := StartTime(1 << 30); ok {
		t.Error("found a process that cannot be")
	}
}

func TestReachable(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if reachable(filepath.Join(dir, "x")) || !reachable("/bin/sh") {
		t.Error("wrong")
	}
}
