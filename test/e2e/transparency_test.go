package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// marker is in every protocol's payload; no frame between workloads may hold it.
const marker = "tulle-marker-5eb1ac0ffee"

// A scene is servers, and things that clients do with them. It is played
// without and with the mesh; what clients and servers print must be the same.
type scene struct {
	name    string
	servers func(t *testing.T, dir string) []service // nil: each take has its own
	takes   []take
}

// take is one thing to do; play returns what was seen of it, to be compared.
type take struct {
	name string
	play func(t *testing.T, on stage, dir string) string
}

// backends are the redirects that every scene is played under.
var backends = []string{"ebpf", "nftables", "iptables"}

func scenes() []scene {
	return []scene{
		tcpScene, rawHTTPScene, nginxScene, pythonScene, sinkScene, webScene,
		websocketScene, redisScene, postgresScene, mariadbScene, smtpScene, tlsScene, socatScene,
	}
}

// TestTransparency: a program behaves with the mesh as it does without, and
// nothing of what it says can be read on the way.
func TestTransparency(t *testing.T) {
	without := &references{direct: newDirect(t), seen: map[string]string{}}
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			capture := startCapture(t, marker)
			host := newHost(t, "--redirect", backend)
			for _, s := range scenes() {
				t.Run(s.name, func(t *testing.T) { s.compare(t, without, host) })
			}
			checkSecrecy(t, capture)
		})
	}
}

func checkSecrecy(t *testing.T, c *capture) {
	t.Helper()
	c.stopReading()
	if n := c.seen[0].Load(); n > 0 {
		t.Errorf("the marker crossed the bridge in the clear in %d of %d frames", n, c.frames.Load())
	}
	if lost := c.lost(t); lost > 0 {
		t.Errorf("the capture lost %d of %d frames, so that it proves nothing", lost, c.frames.Load())
	}
	t.Logf("none of %d frames held the marker", c.frames.Load())
}

// references keeps what was seen without the mesh, so that each take is played
// there once for all backends.
type references struct {
	direct *Direct
	seen   map[string]string
}

// compare plays the scene with the mesh and, where need be, without.
func (s scene) compare(t *testing.T, without *references, with stage) {
	s.raise(t, with, scratch(t))
	raiseOnce := sync.OnceFunc(func() { s.raise(t, without.direct, scratch(t)) })
	for _, take := range s.takes {
		t.Run(take.name, func(t *testing.T) {
			key := s.name + "/" + take.name
			want, known := without.seen[key]
			if !known {
				raiseOnce()
				want = normal(take.play(t, without.direct, scratch(t)))
				without.seen[key] = want
			}
			if got := normal(take.play(t, with, scratch(t))); got != want {
				t.Errorf("without the mesh:\n%s\nwith the mesh:\n%s", block(want), block(got))
			}
		})
	}
}

// record plays the whole scene without the mesh.
func (s scene) record(t *testing.T, without *references) {
	s.raise(t, without.direct, scratch(t))
	for _, take := range s.takes {
		t.Run(take.name, func(t *testing.T) {
			without.seen[s.name+"/"+take.name] = normal(take.play(t, without.direct, scratch(t)))
			t.Log(without.seen[s.name+"/"+take.name])
		})
	}
}

// raise starts the scene's servers on a stage.
func (s scene) raise(t *testing.T, on stage, dir string) {
	t.Helper()
	if s.servers == nil {
		return
	}
	for _, server := range s.servers(t, dir) {
		on.serve(t, server)
	}
}

// changing matches what differs from run to run even without the mesh.
var changing = regexp.MustCompile(`(?i)date: [^\r\n\\]*`)

func normal(seen string) string { return changing.ReplaceAllString(seen, "Date: now") }

// shell is a take that runs a shell script as a client. In it, PEER stands for
// the command of internal/peer, MARKER for the marker.
func shell(name, script string) take { return shellAs(name, "", script) }

func shellAs(name, user, script string) take {
	return take{name, func(t *testing.T, on stage, dir string) string {
		script := strings.NewReplacer("PEER", self()+" "+partPeer, "MARKER", marker).Replace(script)
		r := on.client(t, user, "bash", "-c", "cd "+dir+"\n"+script).wait(t)
		if r.code != 0 || r.stdout == "" {
			return fmt.Sprintf("%sexit code %d\n%s", r.stdout, r.code, ownErrors(r.stderr))
		}
		return r.stdout
	}}
}

// ownErrors leaves out what `tulle run` itself says on stderr.
func ownErrors(stderr string) string {
	var kept []string
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "tulle: ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// dialogue is a take of one scripted server and one scripted client. DIR in
// their steps is a folder that both see; MARKER is the marker.
func dialogue(name string, server, client []string) take {
	return take{name, func(t *testing.T, on stage, dir string) string {
		fill := strings.NewReplacer("DIR", dir, "MARKER", marker)
		s := on.serve(t, service{name: "web", argv: peerCommand(fillAll(fill, "serve", "-n", "1", ":9000", server)...)})
		c := play(t, on, peerCommand(fillAll(fill, "dial", "web:9000", client)...)...)
		return fmt.Sprintf("client ended with %d:\n%s%sserver:\n%s", c.code, c.stdout, ownErrors(c.stderr), s.wait(t).stdout)
	}}
}

func fillAll(fill *strings.Replacer, parts ...any) []string {
	var all []string
	for _, part := range parts {
		switch part := part.(type) {
		case string:
			all = append(all, part)
		case []string:
			for _, step := range part {
				all = append(all, fill.Replace(step))
			}
		}
	}
	return all
}

// fixture writes a file of fixed age, so that servers make the same ETag of it.
func fixture(t *testing.T, dir, name, text string) {
	t.Helper()
	path := write(t, dir, name, "%s", text)
	if err := os.Chtimes(path, fixedTime, fixedTime); err != nil {
		t.Fatal(err)
	}
}
