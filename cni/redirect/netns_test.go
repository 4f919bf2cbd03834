package redirect

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func (l *lab) apply(t *testing.T, r Rules) {
	t.Helper()
	if err := l.backend.Probe(); err != nil {
		t.Fatal(err)
	}
	if err := l.backend.Apply(r); err != nil {
		t.Fatal(err)
	}
	if l.isEBPF() && !l.captured {
		l.stopProxy()
		l.startProxy(t)
		l.captured = true
	}
}

func TestWhoAnswers(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.apply(t, labRules)
		for _, n := range ipNets {
			at := net.JoinHostPort
			for _, tc := range []struct {
				name     string
				uid      int
				netns    *os.File
				from, to string
				want     string
			}{
				{"out", appUID, l.workload, "", at(n.outside, worldPort), "outbound " + at(n.outside, worldPort)},
				{"out to nobody", appUID, l.workload, "", at(n.vip, "443"), "outbound " + at(n.vip, "443")},
				{"out as root", 0, l.workload, "", at(n.outside, worldPort), "outbound " + at(n.outside, worldPort)},
				{"out as uid - 1", proxyUID - 1, l.workload, "", at(n.outside, worldPort), "outbound " + at(n.outside, worldPort)},
				{"out as uid + 1", proxyUID + 1, l.workload, "", at(n.outside, worldPort), "outbound " + at(n.outside, worldPort)},
				{"out to the control plane's and a peer's proxy ports", appUID, l.workload, "", at(n.outside, "4143"), "outbound " + at(n.outside, "4143")},
				{"out as the proxy", proxyUID, l.workload, "", at(n.outside, worldPort), "world " + at(n.outside, worldPort)},
				{"out to a skipped port", appUID, l.workload, "", at(n.outside, skipOutboundPort), "world " + at(n.outside, skipOutboundPort)},
				{"out to a skipped subnet", appUID, l.workload, "", at(n.skipped, worldPort), "world " + at(n.skipped, worldPort)},
				{"own address", appUID, l.workload, "", at(n.workload, appPort), "app " + at(n.workload, appPort)},
				{"own loopback", appUID, l.workload, "", at(n.lo, appPort), "app " + at(n.lo, appPort)},
				{"own address as the proxy", proxyUID, l.workload, "", at(n.workload, appPort), "app " + at(n.workload, appPort)},
				// The proxy sees its own port as the destination, and refuses.
				{"own proxy", appUID, l.workload, "", at(n.lo, "4140"), "outbound " + at(n.lo, "4140")},
				{"in", appUID, l.outside, n.outside, at(n.workload, appPort), "inbound " + at(n.workload, appPort)},
				{"in as the proxy's uid", proxyUID, l.outside, n.outside, at(n.workload, appPort), "inbound " + at(n.workload, appPort)},
				{"in to a port nobody has", appUID, l.outside, n.outside, at(n.workload, "1"), "inbound " + at(n.workload, "1")},
				{"in to the outbound port", appUID, l.outside, n.outside, at(n.workload, "4140"), "inbound " + at(n.workload, "4140")},
				{"in to the inbound port", appUID, l.outside, n.outside, at(n.workload, "4143"), "inbound " + at(n.workload, "4143")},
				{"in to a skipped port", appUID, l.outside, n.outside, at(n.workload, skipInboundPort), "app " + at(n.workload, skipInboundPort)},
				{"in to the admin port", appUID, l.outside, n.outside, at(n.workload, "4191"), "app " + at(n.workload, "4191")},
				{"in from a skipped subnet", appUID, l.outside, n.skipped, at(n.workload, appPort), "app " + at(n.workload, appPort)},
			} {
				t.Run(n.name+" "+tc.name, func(t *testing.T) {
					if got, err := call(tc.uid, tc.netns, tc.from, tc.to); err != nil || got != tc.want {
						t.Errorf("got %q, %v, want %q", got, err, tc.want)
					}
				})
			}
		}
	})
}

func TestDeadProxyMeansRefused(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.apply(t, labRules)
		l.stopProxy()
		for _, n := range ipNets {
			for _, w := range l.bothWays(n) {
				if got, err := call(appUID, w.netns, w.from, w.to); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("to %s: got %q, %v, want connection refused", w.to, got, err)
				}
			}
			if got, err := call(appUID, l.workload, "", net.JoinHostPort(n.workload, appPort)); err != nil {
				t.Errorf("%s to itself: got %q, %v", n.name, got, err)
			}
		}
	})
}

// openBothWays opens a connection each way, which must get to one of want.
func (l *lab) openBothWays(t *testing.T, want string) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for _, n := range ipNets {
		for _, w := range l.bothWays(n) {
			conn, greeting, err := dial(appUID, w.netns, w.from, w.to)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			if name, _, _ := strings.Cut(greeting, " "); !strings.Contains(want, name) {
				t.Fatalf("got %q, want one of %q", greeting, want)
			}
			conns = append(conns, conn)
		}
	}
	return conns
}

func TestTrackedConnectionsStay(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.apply(t, Rules{SkipSubnets: prefixes("192.0.2.0/24", "2001:db8::/64")}) // for the tracking
		conns := l.openBothWays(t, "world app")
		l.apply(t, labRules)
		conns = append(conns, l.openBothWays(t, "outbound inbound")...)
		for _, r := range []Rules{{}, everything, labRules} {
			l.apply(t, r)
			for _, conn := range conns {
				echo(t, conn)
			}
		}
	})
}

// What tracking does not know might be a connection that it knew, and that was
// redirected.
func TestUntrackedConnectionsAreReset(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		if l.isEBPF() {
			t.Log("it acts where connections begin, and knows which did")
			return
		}
		conns := l.openBothWays(t, "world app")
		l.apply(t, labRules)
		for _, conn := range conns {
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			_, _ = conn.Write([]byte("still there?\n"))
			if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%v to %v: got %d bytes, %v, want a reset", conn.LocalAddr(), conn.RemoteAddr(), n, err)
			}
		}
	})
}

func TestApplyTwiceIsApplyOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		empty := l.dump(t)
		if empty != "" {
			t.Fatalf("a new namespace has rules:\n%s", empty)
		}
		dumps := make(map[string]string)
		for _, name := range []string{"default", "default", "everything", "default", "everything", "everything"} {
			l.apply(t, goldenRules[name])
			got := l.dump(t)
			if want, seen := dumps[name]; seen && got != want {
				t.Errorf("%s again (-want +got):\n%s", name, cmp.Diff(want, got))
			}
			dumps[name] = got
		}
		if dumps["default"] == dumps["everything"] || dumps["default"] == "" {
			t.Errorf("other rules make no difference:\n%s", dumps["default"])
		}
		for range 2 {
			if err := l.backend.Remove(); err != nil {
				t.Fatal(err)
			}
			if got := l.dump(t); got != "" {
				t.Errorf("left behind:\n%s", got)
			}
		}
	})
}

func TestInvalidRulesChangeNothing(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.apply(t, labRules)
		before := l.dump(t)
		if err := l.backend.Apply(Rules{SkipInbound: []int{0}}); err == nil {
			t.Error("no error")
		}
		if diff := cmp.Diff(before, l.dump(t)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

// While one set of rules replaces another, no connection gets past the proxy.
func TestReplacingLeavesNoWindow(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		l.apply(t, Rules{})
		var done atomic.Bool
		var wg sync.WaitGroup
		for _, n := range ipNets {
			for _, w := range l.bothWays(n) {
				wg.Go(func() {
					for !done.Load() {
						got, err := call(appUID, w.netns, w.from, w.to)
						if err != nil || !strings.HasPrefix(got, "outbound ") && !strings.HasPrefix(got, "inbound ") {
							t.Errorf("call to %s: got %q, %v", w.to, got, err)
							return
						}
					}
				})
			}
		}
		other := Rules{SkipInbound: []int{1, 2, 3}, SkipOutbound: []int{4, 5, 6}, SkipSubnets: labRules.SkipSubnets}
		for range 8 {
			l.apply(t, other)
			l.apply(t, Rules{})
		}
		done.Store(true)
		wg.Wait()
	})
}

// What one Apply could not finish is as if it had not begun.
func TestHalfAppliedIsNotApplied(t *testing.T) {
	eachBackend(t, func(t *testing.T, l *lab) {
		b, ok := l.backend.(*iptablesBackend)
		if !ok {
			t.Log("nftables has one transaction for both")
			return
		}
		// An ip6tables-restore that fails, but only with these rules.
		working := b.families[1].restore
		fails := filepath.Join(t.TempDir(), "ip6tables-restore")
		script := "#!/bin/sh\ninput=$(cat)\ncase \"$input\" in *31337*) echo 'line 7 failed' >&2; exit 1;; esac\nprintf '%s\\n' \"$input\" | " + working + " \"$@\"\n"
		if err := os.WriteFile(fails, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		b.families[1].restore = fails
		for name, rules := range map[string]*Rules{"from nothing": nil, "from other rules": &labRules} {
			if rules != nil {
				l.apply(t, *rules)
			}
			before := l.dump(t)
			err := b.Apply(Rules{SkipInbound: []int{31337}})
			if err == nil || !strings.Contains(err.Error(), "line 7 failed") || strings.Contains(err.Error(), "put back") {
				t.Errorf("%s: got %v", name, err)
			}
			if diff := cmp.Diff(before, l.dump(t)); diff != "" {
				t.Errorf("%s (-before +after):\n%s", name, diff)
			}
			if err := b.Remove(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
