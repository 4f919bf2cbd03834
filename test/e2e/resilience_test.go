package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tulle-mesh/tulle/test/e2e/internal/peer"
)

// traffic is a workload that asks for a URL for as long as the test wants.
type traffic struct {
	*process
	dir string
}

func startTraffic(t *testing.T, host *Host, url string, flags ...string) *traffic {
	t.Helper()
	dir := scratch(t)
	args := append([]string{"load", "--progress", dir + "/count", "--until", dir + "/enough"}, flags...)
	s := service{name: "load", argv: peerCommand(append(args, url)...)}
	return &traffic{start(t, s.runArgs()...), dir}
}

// more waits until so many more requests were answered.
func (tr *traffic) more(t *testing.T, count int) {
	t.Helper()
	answered := func() int {
		text, _ := os.ReadFile(tr.dir + "/count")
		n, _ := strconv.Atoi(string(text))
		return n
	}
	goal := answered() + count
	eventually(t, func() error {
		select {
		case <-tr.ended:
			t.Fatalf("the client ended: %s", tr.result())
		default:
		}
		if n := answered(); n < goal {
			return fmt.Errorf("%d of %d requests were answered", n, goal)
		}
		return nil
	})
}

// end stops the traffic and returns what it counted.
func (tr *traffic) end(t *testing.T) peer.Load {
	t.Helper()
	if err := os.WriteFile(tr.dir+"/enough", nil, 0o666); err != nil {
		t.Fatal(err)
	}
	r := tr.wait(t)
	var load peer.Load
	if err := json.Unmarshal([]byte(r.stdout), &load); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	return load
}

func (tr *traffic) endWithout(t *testing.T, what string) {
	t.Helper()
	load := tr.end(t)
	t.Logf("%d requests, %v", load.Requests, load.Answers)
	if load.Failures > 0 {
		t.Errorf("%s: %d of %d requests failed: %v", what, load.Failures, load.Requests, load.Errors)
	}
}

// TestControlPlaneDies: nobody notices while it is away; afterwards it knows
// again what runs, and new workloads can come.
func TestControlPlaneDies(t *testing.T) {
	host := newHost(t)
	host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", ":8080")})
	before := host.replicas("web")[0]
	load := startTraffic(t, host, "http://web:8080/")
	load.more(t, 300)
	host.up.signal(syscall.SIGKILL)
	host.up.wait(t)
	load.more(t, 1000)
	host.start(t)
	after := host.awaitReady(t, "web", 1)[0]
	if after.Replica != before.Replica || after.Address4 != before.Address4 || after.Address6 != before.Address6 {
		t.Errorf("before: %v\nafter: %v", before, after)
	}
	load.more(t, 300)
	other := service{name: "other", port: 8080, argv: peerCommand("web", "--name", "other", ":8080")}
	host.serve(t, other)
	if r := play(t, host, "curl", "-sS", "http://other:8080/", "http://web:8080/"); r.code != 0 || !strings.HasPrefix(r.stdout, "other\n10.84.") {
		t.Errorf("after the restart: %s", r)
	}
	load.endWithout(t, "while the control plane was away")
}

// TestReplicasComeAndGo: a replica joins, one leaves; no request fails.
func TestReplicasComeAndGo(t *testing.T) {
	host := newHost(t)
	web := service{name: "web", port: 8080, argv: peerCommand("web", ":8080")}
	host.serve(t, web)
	load := startTraffic(t, host, "http://web:8080/")
	load.more(t, 300)
	web.flags = []string{"--add"}
	for round := range 3 {
		// The newcomer takes part, and the oldest leaves.
		oldest := host.awaitReady(t, "web", 1)[0].Replica
		added := start(t, web.runArgs()...)
		host.awaitReady(t, "web", 2)
		load.more(t, 300)
		must(t, tulle("stop", oldest)...)
		host.awaitReady(t, "web", 1)
		load.more(t, 300)
		select {
		case <-added.ended:
			t.Fatalf("round %d: the new replica ended: %s", round, added.result())
		default:
		}
	}
	load.endWithout(t, "while replicas came and went")
}

// TestProxyDies: the proxy of a workload is killed, on either side. Until it is
// back, traffic is refused; never does it go without it, in the clear.
func TestProxyDies(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			capture := startCapture(t, marker)
			host := newHost(t, "--redirect", backend)
			host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", "--name", marker, ":8080")})
			load := startTraffic(t, host, "http://web:8080/"+marker, "--close")
			load.more(t, 100)
			for _, victim := range []string{"web-1", "load-1", "web-1"} {
				killed := proxyOf(t, victim)
				syscall.Kill(killed, syscall.SIGKILL)
				eventually(t, func() error {
					if now, err := findProxy(victim); err != nil || now == killed {
						return fmt.Errorf("the proxy of %s has not come back: %v", victim, err)
					}
					return nil
				})
				awaitAnswer(t, host, "http://web:8080/"+marker, marker)
			}
			result := load.end(t)
			t.Logf("%d of %d requests failed meanwhile: %v", result.Failures, result.Requests, result.Errors)
			checkSecrecy(t, capture)
		})
	}
}

// awaitAnswer asks until the answer is right.
func awaitAnswer(t *testing.T, host *Host, url, want string) {
	t.Helper()
	eventually(t, func() error {
		if r := play(t, host, "curl", "-sS", url); r.code != 0 || strings.TrimSpace(r.stdout) != want {
			return fmt.Errorf("%s: %s", url, r)
		}
		return nil
	})
}

func proxyOf(t *testing.T, replica string) int {
	t.Helper()
	pid, err := findProxy(replica)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// findProxy returns the process of a replica's proxy.
func findProxy(replica string) (int, error) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		argv, _ := os.ReadFile(dir + "/cmdline")
		words := strings.Split(string(argv), "\x00")
		if filepath.Base(words[0]) != "tulle-proxy" {
			continue
		}
		for i, word := range words[:len(words)-1] {
			if word == "--workload" && words[i+1] == replica {
				return strconv.Atoi(filepath.Base(dir))
			}
		}
	}
	return 0, fmt.Errorf("no proxy of %s runs", replica)
}

// TestRunDies: a `tulle run` that is killed takes its workload along, and the
// control plane takes away what is left of it.
func TestRunDies(t *testing.T) {
	host := newHost(t)
	web := host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", ":8080")})
	proxy := proxyOf(t, "web-1")
	web.signal(syscall.SIGKILL)
	eventually(t, func() error {
		switch {
		case syscall.Kill(proxy, 0) == nil:
			return fmt.Errorf("the proxy is alive")
		case fileExists("/run/netns/tulle-web-1") == nil:
			return fmt.Errorf("the network namespace is there")
		case strings.Contains(processes(), peerCommand("web", ":8080")[2]+" :8080"):
			return fmt.Errorf("the command is alive")
		}
		for _, w := range host.replicas("web") {
			if w.State == "ready" {
				return fmt.Errorf("%s is ready", w.Replica)
			}
		}
		return nil
	})
	// The name is free again.
	host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", "--name", "again", ":8080")})
	if r := play(t, host, "curl", "-sS", "http://web:8080/"); r.stdout != "again\n" {
		t.Errorf("the new one: %s", r)
	}
}

// TestSlowReplica: of three replicas one is slow; it gets well under its share.
func TestSlowReplica(t *testing.T) {
	host := newHost(t)
	web := service{name: "web", port: 8080, argv: peerCommand("web", "--name", "fast", ":8080"), flags: []string{"--replicas", "2"}}
	start(t, web.runArgs()...)
	host.awaitReady(t, "web", 2)
	slow := service{name: "web", port: 8080, argv: peerCommand("web", "--name", "slow", "--delay", "50ms", ":8080"), flags: []string{"--add"}}
	start(t, slow.runArgs()...)
	host.awaitReady(t, "web", 3)
	const requests = 1500
	r := play(t, host, peerCommand("load", "-n", strconv.Itoa(requests), "-c", "6", "http://web:8080/")...)
	var load peer.Load
	if err := json.Unmarshal([]byte(r.stdout), &load); err != nil {
		t.Fatalf("%v: %s", err, r)
	}
	t.Log(load)
	if load.Failures > 0 || load.Answers["fast"]+load.Answers["slow"] != requests {
		t.Errorf("want %d answers: %+v", requests, load)
	}
	// A fair share is a third. The bound is generous: a sixth.
	if load.Answers["slow"] > requests/6 {
		t.Errorf("the slow replica got %d of %d requests", load.Answers["slow"], requests)
	}
}

// TestDownEndsAll: down ends workloads that are still running.
func TestDownEndsAll(t *testing.T) {
	host := newHost(t)
	web := host.serve(t, service{name: "web", port: 8080, argv: peerCommand("web", ":8080")})
	idle := start(t, service{name: "idle", argv: []string{"sleep", "1000"}}.runArgs()...)
	host.awaitStarted(t, "idle")
	host.down(t)
	web.wait(t)
	idle.wait(t)
	if _, err := host.list(); err == nil {
		t.Error("tulle up still answers")
	}
}
