package host

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/identity"
)

func newLeases(t *testing.T, run string) *leases {
	t.Helper()
	low, high := discovery.Halves(netip.MustParsePrefix("10.84.0.0/16"))
	state, err := discovery.NewState(discovery.Config{TrustDomain: TrustDomain, Replicas4: low, VIPs4: high})
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{Config: Config{Network4: netip.MustParsePrefix("10.84.0.0/16")}, backend: "nftables"}
	if d.authority, err = identity.Open(identity.Config{TrustDomain: TrustDomain}); err != nil {
		t.Fatal(err)
	}
	return &leases{
		run: run, state: state, tokens: identity.NewTokens(identity.TokenConfig{}), grant: d.grant, sweep: (*record).sweep,
		log: slog.New(slog.DiscardHandler), replicas: map[string]*held{},
	}
}

// serve returns a client of l.
func serve(t *testing.T, l *leases) tullev1.HostClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	listener, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	tullev1.RegisterHostServer(server, l)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return tullev1.NewHostClient(conn)
}

type joined struct {
	grpc.BidiStreamingClient[tullev1.JoinRequest, tullev1.JoinResponse]
	t     *testing.T
	lease *tullev1.Lease
	hang  context.CancelFunc // breaks the stream without a goodbye
}

func join(t *testing.T, client tullev1.HostClient, reg *tullev1.Register) (*joined, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := client.Join(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if reg.Pid == 0 {
		reg.Pid = int32(os.Getpid())
	}
	if err := stream.Send(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Register{Register: reg}}); err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return &joined{stream, t, m.GetLease(), cancel}, nil
}

func mustJoin(t *testing.T, client tullev1.HostClient, reg *tullev1.Register) *joined {
	t.Helper()
	j, err := join(t, client, reg)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *joined) report(s *tullev1.Status) {
	j.t.Helper()
	if err := j.Send(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Status{Status: s}}); err != nil {
		j.t.Fatal(err)
	}
}

// awaitState returns once a replica is in a state; "" means unknown.
func awaitState(t *testing.T, client tullev1.HostClient, replica, want string) {
	t.Helper()
	for {
		list, err := client.List(t.Context(), &tullev1.ListRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, w := range list.GetWorkloads() {
			if w.GetReplica() == replica {
				got = w.GetState()
			}
		}
		if got == want {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestLifeOfAReplica(t *testing.T) {
	run := t.TempDir()
	l := newLeases(t, run)
	client := serve(t, l)
	j := mustJoin(t, client, &tullev1.Register{Service: "web", Ports: []uint32{80}, Command: []string{"x"}})
	if j.lease.GetReplica() != "web-1" || j.lease.GetAddress4() != "10.84.0.1/16" || len(j.lease.GetRootsPem()) == 0 ||
		j.lease.GetIdentity() != "spiffe://tulle.local/ns/default/sa/web" {
		t.Errorf("lease: %v", j.lease)
	}
	awaitState(t, client, "web-1", "starting")
	j.report(&tullev1.Status{CommandPid: 5})
	j.report(&tullev1.Status{CommandPid: 5, Ready: true})
	awaitState(t, client, "web-1", "ready")
	if r, _ := l.state.Load().Replica("web-1"); !r.Serving() {
		t.Error("discovery does not know that it is ready")
	}
	if err := j.Send(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Token{Token: &tullev1.TokenRequest{}}}); err != nil {
		t.Fatal(err)
	}
	m, err := j.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if id, err := l.tokens.Redeem(m.GetToken()); err != nil || id.Account != "web" {
		t.Errorf("token of %v, %v", id, err)
	}
	j.report(&tullev1.Status{CommandPid: 5, Exited: true, ExitCode: 3})
	_ = j.CloseSend()
	awaitState(t, client, "web-1", "exited (3)")
	if l.state.Load().Service("web") != nil {
		t.Error("discovery still knows the service")
	}
	mustJoin(t, client, &tullev1.Register{Service: "web", Remove: true})
	awaitState(t, client, "web-1", "starting") // the name can be used again
}

func TestTracesAreRemoved(t *testing.T) {
	for _, tc := range []struct {
		name string
		reg  *tullev1.Register
		last *tullev1.Status
	}{
		{"--rm", &tullev1.Register{Service: "web", Remove: true}, &tullev1.Status{CommandPid: 5, Exited: true}},
		{"never ran", &tullev1.Register{Service: "web"}, &tullev1.Status{Exited: true, ExitCode: workload.CodeOwn}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			run := t.TempDir()
			l := newLeases(t, run)
			client := serve(t, l)
			j := mustJoin(t, client, tc.reg)
			j.report(tc.last)
			_ = j.CloseSend()
			awaitState(t, client, "web-1", "")
			if left, _ := filepath.Glob(filepath.Join(run, "workloads", "*")); len(left) > 0 {
				t.Errorf("left %v", left)
			}
			// Who asks why it cannot call, or be called, learns that it has ended.
			for _, name := range []string{"web", "web-1.mesh"} {
				if _, err := l.path(name, "web"); err == nil || !strings.Contains(err.Error(), name+" does not run: it has ended, exited (") {
					t.Errorf("why %s: %v", name, err)
				}
			}
		})
	}
}

func TestJoinRefuses(t *testing.T) {
	client := serve(t, newLeases(t, t.TempDir()))
	mustJoin(t, client, &tullev1.Register{Service: "web"})
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = other.Process.Kill(), other.Wait() }()
	for _, tc := range []struct {
		name string
		reg  *tullev1.Register
		code codes.Code
	}{
		{"name taken", &tullev1.Register{Service: "web"}, codes.AlreadyExists},
		{"name of a replica", &tullev1.Register{Service: "web-1"}, codes.AlreadyExists},
		{"bad name", &tullev1.Register{Service: "We b"}, codes.InvalidArgument},
		{"bad port", &tullev1.Register{Service: "a", Ports: []uint32{70000}}, codes.InvalidArgument},
		{"no such process", &tullev1.Register{Service: "a", Pid: 1 << 30}, codes.InvalidArgument},
		{"somebody else's replica", &tullev1.Register{Service: "web", Replica: "web-1", Pid: int32(other.Process.Pid)}, codes.AlreadyExists},
		{"bad address", &tullev1.Register{Service: "a", Replica: "a-1", Address4: "x"}, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := join(t, client, tc.reg); status.Code(err) != tc.code {
				t.Errorf("got %v", err)
			}
		})
	}
	if j := mustJoin(t, client, &tullev1.Register{Service: "web", Add: true}); j.lease.GetReplica() != "web-2" {
		t.Errorf("added %s", j.lease.GetReplica())
	}
}

func TestLostReplicaComesBack(t *testing.T) {
	client := serve(t, newLeases(t, t.TempDir()))
	j := mustJoin(t, client, &tullev1.Register{Service: "web"})
	j.hang()
	awaitState(t, client, "web-1", "lost")
	again := mustJoin(t, client, &tullev1.Register{Service: "web", Replica: "web-1", Address4: j.lease.GetAddress4()})
	if again.lease.GetAddress4() != j.lease.GetAddress4() || again.lease.GetServiceAddress4() != j.lease.GetServiceAddress4() {
		t.Errorf("came back as %v", again.lease)
	}
	again.report(&tullev1.Status{CommandPid: 5})
	awaitState(t, client, "web-1", "running")
}

func TestStopWaitsForTheEnd(t *testing.T) {
	client := serve(t, newLeases(t, t.TempDir()))
	if _, err := client.Stop(t.Context(), &tullev1.StopRequest{Name: "web"}); status.Code(err) != codes.NotFound {
		t.Errorf("nobody there: %v", err)
	}
	one := mustJoin(t, client, &tullev1.Register{Service: "web"})
	two := mustJoin(t, client, &tullev1.Register{Service: "web", Add: true})
	for _, j := range []*joined{one, two} {
		go func() {
			for {
				m, err := j.Recv()
				if err != nil {
					return
				}
				if m.GetStop() {
					_ = j.Send(&tullev1.JoinRequest{Message: &tullev1.JoinRequest_Status{Status: &tullev1.Status{CommandPid: 5, Exited: true, ExitCode: 143}}})
					_ = j.CloseSend()
				}
			}
		}()
	}
	response, err := client.Stop(t.Context(), &tullev1.StopRequest{Name: "web"})
	if err != nil || len(response.GetStopped()) != 2 {
		t.Errorf("got %v, %v", response, err)
	}
	awaitState(t, client, "web-2", "exited (143)")
}

// TestNextDaemonKeepsPlaces is a kill -9 of the daemon: all that the next one
// has is what is on the disk.
func TestNextDaemonKeepsPlaces(t *testing.T) {
	run := t.TempDir()
	first := newLeases(t, run)
	client := serve(t, first)
	mustJoin(t, client, &tullev1.Register{Service: "api"})
	j := mustJoin(t, client, &tullev1.Register{Service: "web", Ports: []uint32{80}})
	gone := mustJoin(t, client, &tullev1.Register{Service: "old"})
	gone.report(&tullev1.Status{CommandPid: 5, Exited: true, ExitCode: 1})
	_ = gone.CloseSend()
	awaitState(t, client, "old-1", "exited (1)")

	records, err := loadRecords(run)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range records { // in another order than they came
		if r.Replica == "web-1" {
			records[0], records[i] = records[i], records[0]
		}
	}
	second := newLeases(t, run)
	second.adopt(records)
	second.replicas["api-1"].adopted = time.Now().Add(-returnTime) // it had its time
	client = serve(t, second)
	awaitState(t, client, "web-1", "returning")
	awaitState(t, client, "api-1", "lost")
	awaitState(t, client, "old-1", "exited (1)")
	addr4, _, ok := second.state.Load().Resolve("web")
	if !ok || addr4.String() != j.lease.GetServiceAddress4() {
		t.Errorf("web is at %v now, and was at %s", addr4, j.lease.GetServiceAddress4())
	}
	if _, err := join(t, client, &tullev1.Register{Service: "other"}); err != nil {
		t.Fatal(err)
	}
	again := mustJoin(t, client, &tullev1.Register{Service: "web", Replica: "web-1", Address4: j.lease.GetAddress4()})
	if again.lease.GetAddress4() != j.lease.GetAddress4() || again.lease.GetServiceAddress4() != j.lease.GetServiceAddress4() {
		t.Errorf("before %v, after %v", j.lease, again.lease)
	}
}

// A replica whose process was killed is swept up without anybody else having to wait
// for that: only who wants its name does.
func TestBuryingHoldsUpNobodyElse(t *testing.T) {
	l := newLeases(t, t.TempDir())
	swept := make(chan string)
	l.sweep = func(r *record) error {
		swept <- r.Replica // begun
		swept <- r.Replica // ended
		return nil
	}
	client := serve(t, l)
	join := func(reg *tullev1.Register) chan *joined {
		done := make(chan *joined, 1)
		go func() {
			defer close(done)
			if j, err := join(t, client, reg); err != nil {
				t.Errorf("%s: %v", reg.GetService(), err)
			} else {
				done <- j
			}
		}()
		return done
	}
	within := func(done chan *joined) string {
		t.Helper()
		select {
		case j := <-done:
			return j.lease.GetReplica()
		case <-time.After(30 * time.Second):
			t.Fatal("it has to wait")
			return ""
		}
	}
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	killed := mustJoin(t, client, &tullev1.Register{Service: "web", Ports: []uint32{80}, Pid: int32(other.Process.Pid)})
	killed.report(&tullev1.Status{CommandPid: 5, Ready: true})
	awaitState(t, client, "web-1", "ready")
	_, _ = other.Process.Kill(), other.Wait()
	killed.hang()
	<-swept
	awaitState(t, client, "web-1", "ending")
	if r, _ := l.state.Load().Replica("web-1"); r == nil || r.Serving() {
		t.Errorf("callers are still sent to it: %+v", r)
	}
	if got := within(join(&tullev1.Register{Service: "api"})); got != "api-1" {
		t.Errorf("joined as %s", got)
	}
	again := join(&tullev1.Register{Service: "web"})
	<-swept
	if got := within(again); got != "web-1" {
		t.Errorf("the next one is %s", got)
	}
	awaitState(t, client, "web-1", "starting")
}

// A replica comes back to its place, and is killed while what another one left is
// swept up first: it is buried once, and name and address are free again.
func TestKilledWhileItJoinsAgain(t *testing.T) {
	for _, remove := range []bool{false, true} {
		l := newLeases(t, t.TempDir())
		begun, end := make(chan string), map[string]chan struct{}{"web-1": make(chan struct{}), "web-2": make(chan struct{})}
		l.sweep = func(r *record) error {
			begun <- r.Replica
			<-end[r.Replica]
			return nil
		}
		client := serve(t, l)
		process := func() *exec.Cmd {
			c := exec.Command("sleep", "1000")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = c.Process.Kill(), c.Wait() })
			return c
		}
		kill := func(c *exec.Cmd) { _, _ = c.Process.Kill(), c.Wait() }
		one, two := process(), process()
		first := mustJoin(t, client, &tullev1.Register{Service: "web", Remove: remove, Pid: int32(one.Process.Pid)})
		second := mustJoin(t, client, &tullev1.Register{Service: "web", Remove: remove, Add: true, Pid: int32(two.Process.Pid)})
		for replica, j := range map[string]*joined{"web-1": first, "web-2": second} {
			j.hang()
			awaitState(t, client, replica, "lost")
		}
		kill(two)
		again := make(chan error, 1)
		go func() {
			_, err := join(t, client, &tullev1.Register{Service: "web", Replica: "web-1", Remove: remove, Address4: first.lease.GetAddress4(), Pid: int32(one.Process.Pid)})
			again <- err
		}()
		if got := <-begun; got != "web-2" {
			t.Fatalf("%s is swept up", got)
		}
		kill(one)
		buried := make(chan struct{})
		go func() {
			l.buryAll(l.dead(func(h *held) bool { return h.record.Replica == "web-1" })) // as watchLost does
			close(buried)
		}()
		<-begun
		close(end["web-2"])
		if err := <-again; status.Code(err) != codes.InvalidArgument {
			t.Fatalf("who is dead joined: %v", err)
		}
		close(end["web-1"])
		<-buried
		if j := mustJoin(t, client, &tullev1.Register{Service: "web"}); j.lease.GetAddress4() != first.lease.GetAddress4() || j.lease.GetReplica() != "web-1" {
			t.Errorf("--rm %v: not given back: the next one is %v", remove, j.lease)
		}
	}
}

// A goodbye that is read only after its process has gone still counts.
func TestBuriedWithItsExitCode(t *testing.T) {
	l := newLeases(t, t.TempDir())
	client := serve(t, l)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	mustJoin(t, client, &tullev1.Register{Service: "web", Pid: int32(other.Process.Pid)})
	_, _ = other.Process.Kill(), other.Wait()
	l.sweep = func(*record) error {
		l.mu.Lock() // free
		defer l.mu.Unlock()
		l.replicas["web-1"].status = &tullev1.Status{CommandPid: 5, Exited: true, ExitCode: 3}
		return nil
	}
	l.buryAll(l.dead(func(*held) bool { return true }))
	awaitState(t, client, "web-1", "exited (3)")
}

func TestWatchLostEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		l := &leases{replicas: map[string]*held{}, log: slog.New(slog.DiscardHandler)}
		l.watchLost(ctx)
	})
}

func discoveryJoin(service string) discovery.JoinRequest {
	return discovery.JoinRequest{Service: service}
}
