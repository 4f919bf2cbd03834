package workload

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
)

// daemon is as much of the mesh's daemon as a `tulle run` sees.
type daemon struct {
	tullev1.UnimplementedHostServer
	run    string
	server *grpc.Server
	client tullev1.HostClient

	mu       sync.Mutex
	joined   []*tullev1.Register
	statuses map[string]*tullev1.Status
	changed  chan struct{} // replaced with each change of the above
	stop     chan struct{} // closed: all replicas are asked to stop
	onToken  func()        // is told when a proxy has asked for one; nil: nobody
}

// proxyScript stands for tulle-proxy: it asks for a token, gets ready and
// writes what it is to its log.
const proxyScript = `#!/bin/sh
echo token >&3
read token <&3
echo "token $token"
grep -E '^(Uid|Gid|Groups|CapPrm|CapEff|CapBnd|CapInh|NoNewPrivs):' /proc/self/status
echo "cwd $(pwd) roots $(cat /proc/self/fd/5) args $*"
echo ready >&4
exec 4>&-
exec sleep 1000
`

var testBridge = network.Bridge{
	Name: "tulle0", MTU: 1500,
	Gateway4: netip.MustParsePrefix("10.84.0.1/16"), Gateway6: netip.MustParsePrefix("fd84::1/64"),
}

// startDaemon serves until the test ends.
func startDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{run: t.TempDir(), statuses: map[string]*tullev1.Status{}, changed: make(chan struct{}), stop: make(chan struct{})}
	if err := testBridge.Create(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = network.DeleteLink(testBridge.Name) })
	if err := os.WriteFile(filepath.Join(d.run, "proxy"), []byte(proxyScript), 0o755); err != nil {
		t.Fatal(err)
	}
	d.serve(t)
	t.Cleanup(func() { d.server.Stop() })
	conn, err := grpc.NewClient("unix:"+filepath.Join(d.run, "sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d.client = tullev1.NewHostClient(conn)
	return d
}

func (d *daemon) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(d.run, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	d.server = grpc.NewServer()
	tullev1.RegisterHostServer(d.server, d)
	go func() { _ = d.server.Serve(l) }()
}

// restart is a daemon that was killed and started again.
func (d *daemon) restart(t *testing.T) {
	t.Helper()
	d.server.Stop()
	d.serve(t)
}

func (d *daemon) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	close(d.changed)
	d.changed = make(chan struct{})
}

// await returns once is, which is called with the lock held, returns true.
func (d *daemon) await(is func() bool) {
	for {
		d.mu.Lock()
		ok, changed := is(), d.changed
		d.mu.Unlock()
		if ok {
			return
		}
		<-changed
	}
}

func (d *daemon) Join(stream grpc.BidiStreamingServer[tullev1.JoinRequest, tullev1.JoinResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	reg := m.GetRegister()
	if reg.GetService() == "taken" {
		return status.Error(codes.AlreadyExists, "name taken")
	}
	var n int
	d.change(func() { d.joined = append(d.joined, reg); n = len(d.joined) })
	name := reg.GetReplica()
	lease := &tullev1.Lease{
		Replica: name, Service: reg.GetService(), Identity: "spiffe://tulle.local/ns/default/sa/" + reg.GetService(),
		Address4: fmt.Sprintf("10.84.0.%d/16", n+1), Address6: fmt.Sprintf("fd84::%d/64", n+1), Gateway4: "10.84.0.1", Gateway6: "fd84::1",
		Bridge: testBridge.Name, Mtu: 1500, ControlAddress: "10.84.0.1:4190", RootsPem: []byte("roots"),
		Redirect: "auto", Networks: []string{"10.84.0.0/16"}, DnsDomain: "mesh",
	}
	if name == "" {
		lease.Replica = fmt.Sprintf("%s-%d", reg.GetService(), n)
	} else {
		lease.Address4, lease.Address6 = reg.GetAddress4(), reg.GetAddress6()
	}
	if err := os.MkdirAll(filepath.Join(d.run, "workloads", lease.Replica), 0o700); err != nil {
		return err
	}
	if err := stream.Send(&tullev1.JoinResponse{Message: &tullev1.JoinResponse_Lease{Lease: lease}}); err != nil {
		return err
	}
	return d.listen(stream, lease.Replica)
}

func (d *daemon) listen(stream grpc.BidiStreamingServer[tullev1.JoinRequest, tullev1.JoinResponse], name string) error {
	messages := make(chan *tullev1.JoinRequest)
	go func() {
		defer close(messages)
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			messages <- m
		}
	}()
	stop := d.stop
	for {
		var err error
		select {
		case m, ok := <-messages:
			if !ok {
				return nil
			}
			if m.GetStatus() != nil {
				d.change(func() { d.statuses[name] = m.GetStatus() })
			} else {
				if d.onToken != nil {
					d.onToken()
				}
				err = stream.Send(&tullev1.JoinResponse{Message: &tullev1.JoinResponse_Token{Token: "secret"}})
			}
		case <-stop:
			stop = nil
			err = stream.Send(&tullev1.JoinResponse{Message: &tullev1.JoinResponse_Stop{Stop: true}})
		}
		if err != nil {
			return errors.Join(err, drainMessages(messages))
		}
	}
}

func drainMessages(messages <-chan *tullev1.JoinRequest) error {
	for range messages {
	}
	return nil
}
