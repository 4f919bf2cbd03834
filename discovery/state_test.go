package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// show writes the replicas of a service on one line.
func show(s *State, service string) string {
	found := s.Load().Service(service)
	if found == nil {
		return "-"
	}
	var parts []string
	for _, r := range found.Replicas {
		part := r.Name + " " + r.Addr4.String()
		if r.Serving() {
			part += " serving"
		}
		if r.Lost {
			part += " lost"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func checkShow(t *testing.T, s *State, service, want string) {
	t.Helper()
	if got := show(s, service); got != want {
		t.Errorf("%s is\n%s, want\n%s", service, got, want)
	}
}

func TestJoinNames(t *testing.T) {
	s := newState(t)
	setCatalog(t, s, "services: [{name: db, addresses: [192.0.2.1], ports: [5432]}, {name: app-2, addresses: [192.0.2.2], ports: [80]}]")
	first := join(t, s, JoinRequest{Service: "web", Ports: []uint16{8080}})
	if first.Replica.Name != "web-1" || first.Service.VIP4.String() != "10.84.128.3" || first.Service.ID.String() != "spiffe://tulle.local/ns/default/sa/web" {
		t.Errorf("joined as %+v", first)
	}
	join(t, s, JoinRequest{Service: "web", Add: true, Ports: []uint16{9090, 8080}})
	third := join(t, s, JoinRequest{Service: "web", Add: true})
	checkShow(t, s, "web", "web-1 10.84.0.2, web-2 10.84.0.3, web-3 10.84.0.4")
	if got := fmt.Sprint(third.Service.Ports); got != "[8080 9090]" {
		t.Errorf("ports %s", got)
	}
	join(t, s, JoinRequest{Service: "app"})
	join(t, s, JoinRequest{Service: "app", Add: true})
	checkShow(t, s, "app", "app-1 10.84.0.5, app-3 10.84.0.6") // app-2 is a service of the catalog

	for _, tt := range []struct {
		req   JoinRequest
		taken bool
		want  string
	}{
		{JoinRequest{Service: "web"}, true, "tulle stop web"},
		{JoinRequest{Service: "web-2"}, true, "a replica of service \"web\""},
		{JoinRequest{Service: "db"}, true, "catalog"},
		{JoinRequest{Service: "app", Replica: "app-2"}, true, "by service \"app-2\""},
		{JoinRequest{Service: ""}, false, "name"},
		{JoinRequest{Service: "Web"}, false, "a-z"},
		{JoinRequest{Service: strings.Repeat("a", 63)}, false, "1 to 63"},
		{JoinRequest{Service: "x", Ports: []uint16{80, 0}}, false, "port 0"},
		{JoinRequest{Service: "x", Replica: "y-1"}, false, "cannot be one of"},
		{JoinRequest{Service: "x", Replica: "x-0"}, false, "cannot be one of"},
		{JoinRequest{Service: "x", Replica: "x-01"}, false, "cannot be one of"},
		{JoinRequest{Service: "x", Replica: "x-+1"}, false, "cannot be one of"},
		{JoinRequest{Service: "x", Replica: "x-99999999999999999999"}, false, "cannot be one of"},
		{JoinRequest{Service: "x", Replica: "x-1", Addr4: netip.MustParseAddr("10.84.0.2")}, false, "belongs to \"web-1\""},
		{JoinRequest{Service: "x", Replica: "x-1", Addr4: netip.MustParseAddr("10.85.0.2")}, false, "--network4"},
		{JoinRequest{Service: "x", Replica: "x-1", Addr6: netip.MustParseAddr("fd00::1")}, false, "--network6"},
		{JoinRequest{Service: "x", Replica: "x-1", Addr4: netip.MustParseAddr("10.84.0.1")}, false, "--network4"},
	} {
		before := s.Load()
		_, err := s.Join(tt.req)
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrNameTaken) != tt.taken {
			t.Errorf("Join(%+v): %v, want %q", tt.req, err, tt.want)
		}
		if s.Load() != before {
			t.Errorf("Join(%+v) failed and changed something", tt.req)
		}
	}
	// What failed above took no address.
	checkNext := join(t, s, JoinRequest{Service: "x"})
	if checkNext.Replica.Addr4.String() != "10.84.0.7" || checkNext.Service.VIP4.String() != "10.84.128.5" {
		t.Errorf("next addresses %v, %v", checkNext.Replica.Addr4, checkNext.Service.VIP4)
	}
}

func TestLeaseLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()

		one := join(t, s, JoinRequest{Service: "web"})
		two := join(t, s, JoinRequest{Service: "web", Add: true})
		checkShow(t, s, "web", "web-1 10.84.0.2, web-2 10.84.0.3")
		one.SetReady(true)
		two.SetReady(true)
		checkShow(t, s, "web", "web-1 10.84.0.2 serving, web-2 10.84.0.3 serving")

		one.Lose()
		checkShow(t, s, "web", "web-1 10.84.0.2 lost, web-2 10.84.0.3 serving")
		time.Sleep(defaultGrace / 2)
		two.Lose()
		one.SetReady(true) // a lost lease says nothing any more
		synctest.Wait()
		checkShow(t, s, "web", "web-1 10.84.0.2 lost, web-2 10.84.0.3 lost")

		time.Sleep(defaultGrace/2 - time.Second)
		synctest.Wait()
		checkShow(t, s, "web", "web-1 10.84.0.2 lost, web-2 10.84.0.3 lost")
		again := join(t, s, JoinRequest{Service: "web", Replica: "web-1", Addr4: one.Replica.Addr4})
		checkShow(t, s, "web", "web-1 10.84.0.2 serving, web-2 10.84.0.3 lost")
		one.Leave() // the old stream is noticed to be gone
		one.Lose()
		checkShow(t, s, "web", "web-1 10.84.0.2 serving, web-2 10.84.0.3 lost")

		time.Sleep(defaultGrace / 2 * 3)
		synctest.Wait()
		checkShow(t, s, "web", "web-1 10.84.0.2 serving")
		again.SetReady(false)
		checkShow(t, s, "web", "web-1 10.84.0.2")
		again.Leave()
		again.Leave() // twice is no error
		again.SetReady(true)
		again.Lose()
		checkShow(t, s, "web", "-")

		// The same name gets the same addresses; another one does not.
		other := join(t, s, JoinRequest{Service: "other"})
		back := join(t, s, JoinRequest{Service: "web"})
		if other.Service.VIP4 == one.Service.VIP4 || back.Service.VIP4 != one.Service.VIP4 || back.Replica.Addr6 != one.Replica.Addr6 {
			t.Errorf("addresses after the end: other %v, web %v, before %v", other.Service.VIP4, back.Service.VIP4, one.Service.VIP4)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestRunSleepsUntilTheFirstDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.Run(ctx)
		synctest.Wait()
		for i := range 5 {
			join(t, s, JoinRequest{Service: fmt.Sprintf("s%d", i)}).Lose()
			time.Sleep(time.Second)
		}
		time.Sleep(defaultGrace - 5*time.Second + time.Millisecond)
		for i := range 5 {
			synctest.Wait()
			if show(s, fmt.Sprintf("s%d", i)) != "-" || (i < 4 && show(s, fmt.Sprintf("s%d", i+1)) == "-") {
				t.Errorf("s%d did not end, or the next one did", i)
			}
			time.Sleep(time.Second)
		}
	})
}

// A control plane that has lost its memory gets it back from the replicas.
func TestRejoinAfterARestart(t *testing.T) {
	before := newState(t)
	var leases []*Lease
	for i := range 3 {
		leases = append(leases, join(t, before, JoinRequest{Service: "web", Add: i > 0}))
	}
	after := newState(t)
	intruder := join(t, after, JoinRequest{Service: "web"}) // comes before the others are back
	if intruder.Replica.Name != "web-1" {
		t.Fatalf("joined as %v", intruder.Replica.Name)
	}
	for _, lease := range []*Lease{leases[2], leases[1]} {
		r := lease.Replica
		back := join(t, after, JoinRequest{Service: "web", Replica: r.Name, Addr4: r.Addr4, Addr6: r.Addr6, VIP4: lease.Service.VIP4})
		if back.Replica.Addr4 != r.Addr4 || back.Replica.Addr6 != r.Addr6 || back.Service.VIP4 != lease.Service.VIP4 {
			t.Errorf("%s came back as %+v", r.Name, back.Replica)
		}
	}
	checkShow(t, after, "web", "web-1 10.84.0.2, web-2 10.84.0.3, web-3 10.84.0.4")
	_, err := after.Join(JoinRequest{Service: "web", Replica: "web-2", Addr4: netip.MustParseAddr("10.84.0.9")})
	if !errors.Is(err, ErrNameTaken) {
		t.Errorf("a second web-2: %v", err)
	}
}

// Who is lost, and then found dead, keeps its address while it is swept up.
func TestLosingAgainBeginsTheGraceAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newState(t)
		lease := join(t, s, JoinRequest{Service: "web"})
		lease.Lose()
		time.Sleep(defaultGrace - time.Second)
		lease.Lose()
		time.Sleep(2 * time.Second)
		s.Expire(s.config.Now())
		checkShow(t, s, "web", "web-1 10.84.0.2 lost")
		time.Sleep(defaultGrace)
		s.Expire(s.config.Now())
		checkShow(t, s, "web", "-")
	})
}

func TestLeaveEndsALostLeaseAtOnce(t *testing.T) {
	s := newState(t)
	lease := join(t, s, JoinRequest{Service: "web"})
	lease.Lose()
	lease.Lose()
	checkShow(t, s, "web", "web-1 10.84.0.2 lost")
	lease.Leave()
	checkShow(t, s, "web", "-")
	if next := s.Expire(s.config.Now()); !next.IsZero() {
		t.Errorf("a deadline is left: %v", next)
	}
}

func TestLostServiceMayBeJoinedAnew(t *testing.T) {
	s := newState(t)
	join(t, s, JoinRequest{Service: "web"}).Lose()
	join(t, s, JoinRequest{Service: "web"})
	checkShow(t, s, "web", "web-1 10.84.0.2 lost, web-2 10.84.0.3")
	for range 10 {
		join(t, s, JoinRequest{Service: "web", Add: true})
	}
	if got := show(s, "web"); !strings.HasSuffix(got, "web-9 10.84.0.10, web-10 10.84.0.11, web-11 10.84.0.12, web-12 10.84.0.13") {
		t.Errorf("order: %s", got)
	}
}

func TestExhaustedPoolTakesNothing(t *testing.T) {
	config := testConfig()
	config.Replicas4 = netip.MustParsePrefix("10.84.0.0/30") // .2 only
	s, err := NewState(config)
	if err != nil {
		t.Fatal(err)
	}
	lease := join(t, s, JoinRequest{Service: "web"})
	for range 3 {
		_, err = s.Join(JoinRequest{Service: "other"})
		if err == nil || !strings.Contains(err.Error(), "--network4") {
			t.Errorf("exhausted: %v", err)
		}
	}
	lease.Leave()
	other := join(t, s, JoinRequest{Service: "other"})
	if got := other.Service.VIP4.String() + " " + other.Replica.Addr6.String(); got != "10.84.128.2 fd84:7475:6c6c:e000::3" {
		t.Errorf("the failed joins kept addresses: %s", got)
	}
}

func TestSnapshotsDoNotChange(t *testing.T) {
	s := newState(t)
	lease := join(t, s, JoinRequest{Service: "web"})
	old, changed := s.Watch()
	lease.SetReady(true)
	<-changed
	if r, _ := old.Replica("web-1"); r.Ready {
		t.Error("an old snapshot changed")
	}
	before := s.Load()
	lease.SetReady(true)
	if s.Load() != before {
		t.Error("a change to the same published a snapshot")
	}
	if before.Revision <= old.Revision {
		t.Errorf("revision %d after %d", before.Revision, old.Revision)
	}
}

func TestConfigValidate(t *testing.T) {
	s, err := NewState(Config{TrustDomain: "tulle.local"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Join(JoinRequest{Service: "web"}); err == nil {
		t.Error("a replica without an address")
	}
	config := testConfig()
	config.TrustDomain = "UPPER"
	if _, err := NewState(config); err == nil {
		t.Error("bad trust domain accepted")
	}
	config = testConfig()
	config.VIPs6 = netip.Prefix{}
	if _, err := NewState(config); err == nil {
		t.Error("half a family accepted")
	}
	config = testConfig()
	config.Replicas6, config.VIPs6 = netip.Prefix{}, netip.Prefix{}
	s, err = NewState(config)
	if err != nil {
		t.Fatal(err)
	}
	if l := join(t, s, JoinRequest{Service: "web"}); l.Replica.Addr6.IsValid() || !l.Replica.Addr4.IsValid() {
		t.Errorf("IPv4 only: %+v", l.Replica)
	}
	config = testConfig()
	config.VIPs4 = netip.MustParsePrefix("10.84.128.0/32")
	if _, err := NewState(config); err == nil || !strings.Contains(err.Error(), "--network4") {
		t.Errorf("tiny network: %v", err)
	}
}

func TestSetCatalog(t *testing.T) {
	s := newState(t)
	setCatalog(t, s, `services:
  - {name: a, addresses: [192.0.2.1], ports: [80]}
  - {name: b, addresses: [192.0.2.2], ports: [80]}`)
	a, b := s.Load().Service("a"), s.Load().Service("b")

	// An address moves from one service to another, one goes, one comes.
	setCatalog(t, s, `services:
  - {name: c, addresses: [192.0.2.1], ports: [80]}
  - {name: b, addresses: [192.0.2.2], ports: [80]}`)
	if got := lookup(s, "192.0.2.1:80"); !strings.HasPrefix(got, "c.default") {
		t.Errorf("192.0.2.1 is %s", got)
	}
	if s.Load().Service("a") != nil || s.Load().Service("b") != b {
		t.Error("a is still there, or b was touched")
	}
	setCatalog(t, s, `services:
  - {name: b, addresses: [192.0.2.1], ports: [80]}
  - {name: c, addresses: [192.0.2.2], ports: [80]}
  - {name: a, addresses: [192.0.2.3], ports: [80]}`)
	for addr, want := range map[string]string{"192.0.2.1:80": "b.", "192.0.2.2:80": "c.", "192.0.2.3:80": "a."} {
		if got := lookup(s, addr); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
	if again := s.Load().Service("a"); again.VIP4 != a.VIP4 || s.Load().Service("b").VIP4 != b.VIP4 {
		t.Errorf("addresses changed: a %v %v", a.VIP4, again.VIP4)
	}

	// What contradicts the services that run changes nothing.
	lease := join(t, s, JoinRequest{Service: "web"})
	before := s.Load()
	for text, want := range map[string]string{
		"services: [{name: new, addresses: [192.0.2.9], ports: [1]}, {name: web, addresses: [192.0.2.8], ports: [1]}]": "tulle stop web",
		"services: [{name: web-1, addresses: [192.0.2.8], ports: [1]}]":                                                "by a replica",
		"services: [{name: x, addresses: [10.84.0.2], ports: [1]}]":                                                    "mesh's own network",
		"services: [{name: x, addresses: ['fd84:7475:6c6c:e000::7'], ports: [1]}]":                                     "mesh's own network",
	} {
		catalog, err := ParseCatalog("services.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetCatalog(catalog); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "services.yaml:1: ") {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if s.Load() != before {
			t.Fatalf("%s: refused and yet applied", text)
		}
	}
	lease.Leave()
	setCatalog(t, s, "services: [{name: host, addresses: [10.84.0.1], ports: [80]}]") // the host's own address
	setCatalog(t, s, "")
	if n := len(s.Load().Services()) + len(s.Load().addrs) + len(s.Load().listed) + len(s.Load().names); n != 0 {
		t.Errorf("%d entries are left of an empty catalog", n)
	}
}

func BenchmarkChangeAmong1000Services(b *testing.B) {
	s := newState(b)
	var lease *Lease
	for i := range 1000 {
		for n := range 3 {
			lease = join(b, s, JoinRequest{Service: fmt.Sprintf("s%d", i), Add: n > 0})
		}
	}
	ready := false
	for b.Loop() {
		ready = !ready
		lease.SetReady(ready)
	}
}

func BenchmarkMatch(b *testing.B) {
	s := newState(b)
	for i := range 1000 {
		join(b, s, JoinRequest{Service: fmt.Sprintf("s%d", i)})
	}
	addr := netip.MustParseAddrPort("10.84.128.77:80")
	b.ReportAllocs()
	for b.Loop() {
		if s.Load().Match(addr).Service == nil {
			b.Fatal("not found")
		}
	}
}
