package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/link"
)

// TestRedirectIsSaid: `tulle up` says in one line which redirect it took, and why;
// a proxy says so where applications will see it as their client.
func TestRedirectIsSaid(t *testing.T) {
	const proxySeen = "applications see this proxy as their client"
	for flag, want := range map[string]string{
		"auto": "redirect by ebpf (", "ebpf": "redirect by ebpf (asked for)",
		"nftables": "redirect by nftables (asked for)", "iptables": "redirect by iptables (asked for)",
	} {
		t.Run(flag, func(t *testing.T) {
			host := newHost(t, "--redirect", flag)
			eventually(t, func() error {
				said := host.up.result()
				if text := said.stdout + said.stderr; strings.Count(text, "redirect") != 1 || !strings.Contains(text, want) {
					return fmt.Errorf("want one line with %q: %s", want, said)
				}
				return nil
			})
			host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", ":8080")})
			if said := proxyLog(t, "web-1"); strings.Contains(said, proxySeen) == strings.Contains(want, "ebpf") {
				t.Errorf("the proxy says:\n%s", said)
			}
		})
	}
}

func proxyLog(t *testing.T, replica string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(runDir, "workloads", replica, "proxy.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestProxyMissesItsHook: where the kernel lacks what shows clients to applications,
// the proxy notices, says so, and serves.
func TestProxyMissesItsHook(t *testing.T) {
	host := newHost(t, "--redirect", "ebpf")
	for _, program := range []string{"bind4", "bind6"} {
		l, err := link.LoadPinnedLink("/sys/fs/bpf/tulle/links/"+program, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Detach(); err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", "--name", marker, ":8080")})
	if said := proxyLog(t, "web-1"); !strings.Contains(said, "level=WARN") || !strings.Contains(said, "the kernel does not take the bind") {
		t.Errorf("the proxy says:\n%s", said)
	}
	awaitAnswer(t, host, "http://web:8080/", marker)
}

// TestSystemdUnits: the README's units are what systemd reads, and what they start
// behaves as they say: it ends when it alone is told to, and can be started again as
// soon as it was killed.
func TestSystemdUnits(t *testing.T) {
	commands := unitCommands(t)
	mesh, web := commands["tulle.service"], commands["web.service"]
	if len(mesh) == 0 || len(web) == 0 {
		t.Fatalf("commands of the README's units: %q", commands)
	}
	host := newHost(t, append([]string{"--redirect", "ebpf"}, mesh[2:]...)...)
	unit := start(t, web...)
	host.awaitReadyOf(t, unit, "web")
	for range 3 {
		unit = restart(t, unit) // Restart=always
		host.awaitReadyOf(t, unit, "web")
	}
	if r := play(t, host, "curl", "-sS", "http://web:8080/"); r.stdout != "web\n" {
		t.Errorf("%s", r)
	}
	unit.signal(syscall.SIGTERM) // KillMode=mixed
	if r := unit.wait(t); r.code != 143 && r.code != 0 {
		t.Errorf("systemd would say that it failed: %s", r)
	}
}

var unitBlock = regexp.MustCompile("(?s)```ini\n# /etc/systemd/system/(\\S+)\n(.*?)```")

// unitCommands has systemd read the README's units, and returns their commands by
// unit, with programs that are here.
func unitCommands(t *testing.T) map[string][]string {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := scratch(t)
	commands := map[string][]string{}
	for _, block := range unitBlock.FindAllStringSubmatch(string(readme), -1) {
		text := strings.NewReplacer(
			"/usr/local/bin/tulle", tulle()[0],
			"/usr/bin/web-server", strings.Join(peerCommand("web", "--name", "web", ":8080"), " "),
		).Replace(block[2])
		write(t, dir, block[1], "%s", text)
		_, command, _ := strings.Cut(text, "ExecStart=")
		command, _, _ = strings.Cut(command, "\n")
		commands[block[1]] = strings.Fields(command)
		if !strings.Contains(text, "KillMode=") || !strings.Contains(text, "Restart=always") {
			t.Errorf("%s:\n%s", block[1], text)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("systemd is not here: nobody has read the units")
		return commands
	}
	for name := range commands {
		if out, err := exec.Command("systemd-analyze", "verify", filepath.Join(dir, name)).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	return commands
}
