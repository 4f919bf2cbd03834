package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

// hostNetwork are the flags of a workload that stays in the host's network.
func hostNetwork(flags ...string) []string { return append(flags, "--network", "host") }

// TestHostNetwork: services that stay where they are and workloads with networks of
// their own call each other by mutual TLS, both ways and among themselves.
func TestHostNetwork(t *testing.T) {
	capture := startCapture(t, marker)
	host := newHost(t, "--redirect", "ebpf")
	www := scratch(t)
	write(t, www, "index.html", "%s\n", marker)
	host.serve(t, service{name: "site", port: 8080, flags: hostNetwork(), argv: []string{"python3", "-m", "http.server", "--directory", www, "8080"}})
	host.serve(t, service{name: "cache", port: 6379, flags: hostNetwork(), argv: []string{"redis-server", "--save", "", "--bind", "0.0.0.0", "::", "--protected-mode", "no"}})
	host.serve(t, service{name: "inner", port: 8080, argv: peerCommand("web", "--name", marker, ":8080")})
	host.serve(t, service{name: "told", port: 9000, flags: hostNetwork(), argv: []string{"python3", "-c", tellClient}})
	for _, where := range []struct {
		name  string
		flags []string
	}{{"own", nil}, {"host", hostNetwork()}} {
		t.Run("from "+where.name, func(t *testing.T) {
			run := func(argv ...string) result {
				return start(t, service{name: "caller-" + where.name, flags: append([]string{"--rm"}, where.flags...), argv: argv}.runArgs()...).wait(t)
			}
			for _, family := range []string{"-4", "-6"} {
				r := run("curl", family, "-sS", "http://site:8080/", "http://site-1.mesh:8080/", "http://inner.mesh:8080/")
				if r.stdout != strings.Repeat(marker+"\n", 3) {
					t.Errorf("curl %s: %s", family, r)
				}
			}
			if r := run("redis-cli", "-h", "cache", "set", where.name, marker); r.stdout != "OK\n" {
				t.Errorf("redis: %s", r)
			}
			if r := run("redis-cli", "-h", "cache", "get", where.name); r.stdout != marker+"\n" {
				t.Errorf("redis: %s", r)
			}
			checkEnds(t, host, run)
		})
	}
	edges := must(t, tulle("edges")...)
	for line := range strings.Lines(edges) {
		if f := strings.Fields(line); strings.HasPrefix(f[0], "caller-") && f[2] != "mTLS" {
			t.Errorf("not by mutual TLS: %s", line)
		}
	}
	if n := strings.Count(edges, "caller-"); n < 8 {
		t.Errorf("edges:\n%s", edges)
	}
	checkSecrecy(t, capture)
}

// checkEnds compares the addresses that both ends of a connection see.
func checkEnds(t *testing.T, host *Host, run func(argv ...string) result) {
	t.Helper()
	told := host.replicas("told")[0]
	targets := []string{address(told.Address4), address(told.Address6)}
	r := run(append([]string{"python3", "-c", askServer}, targets...)...)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if len(lines) != len(targets) {
		t.Fatalf("%s", r)
	}
	for i, line := range lines {
		f := strings.Fields(line)
		if len(f) != 8 {
			t.Fatalf("%s", r)
		}
		client := strings.Join(f[:2], " ")
		want := fmt.Sprintf("%s %s 9000 %s %s", client, targets[i], client, client)
		if line != want || !strings.HasPrefix(client, "10.84.") && !strings.HasPrefix(client, "fd84:") {
			t.Errorf("got %q, want %q", line, want)
		}
	}
}

// TestHostNetworkItself: a workload in the host's network may call itself, by its
// service, by its addresses and by those of the host.
func TestHostNetworkItself(t *testing.T) {
	newHost(t, "--redirect", "ebpf")
	const script = `%[1]s peer web --name me :8080 &
		until curl -fsS http://selfish:8080/; do sleep 0.05; done
		for to in $(getent ahosts selfish-1 | cut -d' ' -f1 | sort -u | sed 's/.*:.*/[&]/') 10.84.0.1 127.0.0.1 '[::1]'; do
			curl -gfsS --max-time 30 http://$to:8080/
		done
		kill %%1`
	for _, flags := range [][]string{nil, {"--strict"}} {
		s := service{name: "selfish", port: 8080, flags: hostNetwork(flags...), argv: []string{"bash", "-c", fmt.Sprintf(script, self())}}
		if r := start(t, s.runArgs()...).wait(t); r.stdout != strings.Repeat("me\n", 6) {
			t.Errorf("%v: %s", flags, r)
		}
	}
}

// TestHostNetworkOthers: processes of the host that are not meshed notice nothing;
// those who call the ports of a service that has been meshed still reach it, unless
// it is to be strict, and the proxy's ports answer nobody.
func TestHostNetworkOthers(t *testing.T) {
	host := newHost(t, "--redirect", "ebpf")
	machine, err := newLAN() // after the inventory: a link takes its time to come up
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(machine.close)
	outside := start(t, machine.argv(peerCommand("web", "--name", "outside", ":7000")...)...)
	outside.awaitText(t, outside.stderr, "listening")
	bystander := start(t, peerCommand("web", "--name", "bystander", ":7001")...)
	bystander.awaitText(t, bystander.stderr, "listening")
	host.serve(t, service{name: "open", port: 8080, flags: hostNetwork(), argv: peerCommand("web", "--name", "open", ":8080")})
	host.serve(t, service{name: "shut", port: 8081, flags: hostNetwork("--strict"), argv: peerCommand("web", "--name", "shut", ":8081")})
	open := host.replicas("open")[0]
	curl := func(url string) []string { return []string{"curl", "-gsS", "--max-time", "30", url} }
	for _, c := range []struct {
		what string
		argv []string
		want string
	}{
		{"from the host to the network", curl("http://" + lanFirst + ":7000/"), "outside\n"},
		{"from the network to the host", machine.argv(curl("http://" + lanHost + ":7001/")...), "bystander\n"},
		{"within the host", curl("http://[::1]:7001/"), "bystander\n"},
		{"from the network to an open service", machine.argv(curl("http://" + lanHost + ":8080/")...), "open\n"},
		{"from the network to a strict one", machine.argv(curl("http://" + lanHost + ":8081/")...), ""},
		{"within the host to an open service", curl("http://" + lanHost + ":8080/"), "open\n"},
		{"within the host to a strict one", curl("http://" + lanHost + ":8081/"), ""},
		{"by loopback to a strict one", curl("http://127.0.0.1:8081/"), "shut\n"},
	} {
		if r := start(t, c.argv...).wait(t); r.stdout != c.want {
			t.Errorf("%s: %s", c.what, r)
		}
	}
	for _, to := range []string{address(open.Address4), address(open.Address6), "127.0.2.1"} {
		for _, port := range []int{mesh.OutboundPort, mesh.InboundPort} {
			if answer := shout(net.JoinHostPort(to, fmt.Sprint(port)), "GET / HTTP/1.1\r\nHost: open:8080\r\nConnection: close\r\n\r\n"); answer != "" {
				t.Errorf("port %d of %s answers: %q", port, to, answer)
			}
		}
	}
	for _, port := range []string{"7001", "8081"} { // a bystander's, another workload's
		if r := play(t, host, append(curl("http://open-1:"+port+"/"), "--fail")...); r.code == 0 || r.stdout != "" {
			t.Errorf("port %s of a workload that has not named it: %s", port, r)
		}
	}
	meshed := start(t, service{name: "client", flags: hostNetwork("--rm"), argv: curl("http://" + lanFirst + ":7000/")}.runArgs()...)
	if r := meshed.wait(t); r.stdout != "outside\n" {
		t.Errorf("from a workload in the host's network to the network: %s", r)
	}
}

// TestHostNetworkPorts: what cannot be had is said in one line.
func TestHostNetworkPorts(t *testing.T) {
	refused := func(t *testing.T, want string, s service) {
		t.Helper()
		r := start(t, s.runArgs()...).wait(t)
		if r.code != 125 && r.code != 2 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("want %q: %s", want, r)
		}
	}
	t.Run("ebpf", func(t *testing.T) {
		host := newHost(t, "--redirect", "ebpf")
		web := host.serve(t, service{name: "web", port: 8080, flags: hostNetwork(), argv: peerCommand("web", ":8080")})
		refused(t, "port 8080 of this host is web-1's; choose another, or type: tulle stop web",
			service{name: "other", port: 8080, flags: hostNetwork(), argv: []string{"true"}})
		refused(t, "run one, or leave --network host out", service{name: "many", port: 8090, flags: hostNetwork("--replicas", "2"), argv: []string{"true"}})
		refused(t, "is the mesh's own on this host", service{name: "control", port: mesh.ControlPort, flags: hostNetwork(), argv: []string{"true"}})
		refused(t, "must be own or host", service{name: "odd", flags: []string{"--network", "bridge"}, argv: []string{"true"}})
		// In a network of its own the port is free, and afterwards here, too.
		host.serve(t, service{name: "own", port: 8080, argv: peerCommand("web", "--name", "own", ":8080")})
		must(t, tulle("stop", "web")...)
		web.wait(t)
		host.serve(t, service{name: "other", port: 8080, flags: hostNetwork(), argv: peerCommand("web", "--name", "other", ":8080")})
		if r := play(t, host, "curl", "-sS", "http://own:8080/", "http://other:8080/"); r.stdout != "own\nother\n" {
			t.Errorf("%s", r)
		}
	})
	t.Run("nftables", func(t *testing.T) {
		newHost(t, "--redirect", "nftables")
		refused(t, "type: tulle down && tulle up --redirect ebpf", service{name: "web", port: 8080, flags: hostNetwork(), argv: []string{"true"}})
	})
}

// TestHostNetworkDies: whatever is killed, traffic does not go without the proxy
// meanwhile, and nothing stays behind, which newHost checks at the end.
func TestHostNetworkDies(t *testing.T) {
	capture := startCapture(t, marker)
	host := newHost(t, "--redirect", "ebpf")
	forker := []string{"bash", "-c", "sleep 1000 & exec " + strings.Join(peerCommand("web", "--name", marker, ":8080"), " ")}
	web := host.serve(t, service{name: "web", port: 8080, flags: hostNetwork(), argv: forker})
	killed := proxyOf(t, "web-1")
	syscall.Kill(killed, syscall.SIGKILL)
	eventually(t, func() error {
		if now, err := findProxy("web-1"); err != nil || now == killed {
			return fmt.Errorf("the proxy has not come back: %v", err)
		}
		return nil
	})
	awaitAnswer(t, host, "http://web:8080/"+marker, marker)
	for range 5 { // started again at once, as a service manager does, it has its name and its port
		web = restart(t, web)
		host.awaitReadyOf(t, web, "web")
		awaitAnswer(t, host, "http://web:8080/"+marker, marker)
	}
	web.signal(syscall.SIGKILL)
	eventually(t, func() error {
		pins, err := os.ReadDir("/sys/fs/bpf/tulle/members")
		if err != nil || len(pins) > 0 {
			return fmt.Errorf("the kernel still has %v, %v", pins, err)
		}
		return nil
	})
	web = host.serve(t, service{name: "web", port: 8080, flags: hostNetwork(), argv: forker})
	host.up.signal(syscall.SIGKILL)
	host.up.wait(t)
	host.start(t)
	host.awaitReady(t, "web", 1)
	awaitAnswer(t, host, "http://web:8080/"+marker, marker)
	host.up.signal(syscall.SIGKILL)
	host.up.wait(t)
	web.signal(syscall.SIGKILL)
	web.wait(t)
	checkSecrecy(t, capture)
}

// restart kills a program and starts it again as soon as it is gone.
func restart(t *testing.T, p *process) *process {
	t.Helper()
	p.signal(syscall.SIGKILL)
	eventually(t, func() error {
		if err := syscall.Kill(p.cmd.Process.Pid, 0); err != syscall.ESRCH {
			return fmt.Errorf("process %d is still there: %v", p.cmd.Process.Pid, err)
		}
		return nil
	})
	return start(t, p.cmd.Args...)
}
