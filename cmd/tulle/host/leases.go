package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tullev1 "github.com/tulle-mesh/tulle/api/tulle/v1"
	"github.com/tulle-mesh/tulle/cmd/tulle/workload"
	"github.com/tulle-mesh/tulle/discovery"
	"github.com/tulle-mesh/tulle/identity"
	"github.com/tulle-mesh/tulle/mesh"
)

// leases implements tullev1.HostServer: it keeps a replica in the mesh for as
// long as the stream of its `tulle run` lasts.
//
//	Join -> held --goodbye--> exited --run again, down--> forgotten
//	          |                 ^
//	          '-stream broke-> lost --its process is gone--'
//	          ^-- Join again --'
type leases struct {
	tullev1.UnimplementedHostServer

	run    string // directory
	state  *discovery.State
	tokens *identity.Tokens
	grant  func(*discovery.Lease) *tullev1.Lease // what a replica has to know
	sweep  func(*record) error                   // (*record).sweep: takes its time, so never under mu
	log    *slog.Logger
	// hostNetwork is why workloads cannot stay in the host's network; nil: they can.
	hostNetwork error

	mu       sync.Mutex
	closing  bool
	replicas map[string]*held
	departed []departed // run with --rm, the last ones
}

// held is one replica that is known.
type held struct {
	record record
	lease  *discovery.Lease // nil: exited
	status *tullev1.Status
	lost   bool
	// adopted is when it was taken over from an earlier daemon; zero: it was not.
	adopted time.Time
	burying bool          // its process is gone, and somebody sweeps up what is left
	stop    chan struct{} // closed: it was asked to end
	asked   bool
	gone    chan struct{} // closed: it has ended
}

// returnTime is how long after a daemon's start a replica of the one before may
// take to join again. It tries twice a second.
const returnTime = 5 * time.Second

// state is the word that ps shows.
func (h *held) state() string {
	switch r := &h.record; {
	case r.Exited:
		return fmt.Sprintf("exited (%d)", r.ExitCode)
	case h.burying:
		return "ending"
	case h.lost && time.Since(h.adopted) < returnTime:
		return "returning"
	case h.lost:
		return "lost"
	case h.status.GetCommandPid() == 0:
		return "starting"
	case len(r.Ports) == 0:
		return "running"
	case h.status.GetReady():
		return "ready"
	}
	return "starting"
}

// Join implements tullev1.HostServer.
func (l *leases) Join(stream grpc.BidiStreamingServer[tullev1.JoinRequest, tullev1.JoinResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	h, lease, err := l.enter(first.GetRegister())
	if err != nil {
		return err
	}
	defer l.leave(h, lease)
	err = stream.Send(&tullev1.JoinResponse{Message: &tullev1.JoinResponse_Lease{Lease: l.grant(lease)}})
	if err != nil {
		return err
	}
	return l.converse(stream, h)
}

// converse answers a replica until it hangs up.
func (l *leases) converse(stream grpc.BidiStreamingServer[tullev1.JoinRequest, tullev1.JoinResponse], h *held) error {
	ctx := stream.Context()
	messages := make(chan *tullev1.JoinRequest)
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	stop := h.stop
	for {
		var err error
		select {
		case m := <-messages:
			err = l.handle(stream, h, m)
		case <-stop:
			stop = nil
			err = stream.Send(&tullev1.JoinResponse{Message: &tullev1.JoinResponse_Stop{Stop: true}})
		case err = <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
}

func (l *leases) handle(stream grpc.BidiStreamingServer[tullev1.JoinRequest, tullev1.JoinResponse], h *held, m *tullev1.JoinRequest) error {
	switch {
	case m.GetStatus() != nil:
		l.mu.Lock()
		h.status = m.GetStatus()
		lease := h.lease
		l.mu.Unlock()
		if lease != nil {
			lease.SetReady(m.GetStatus().GetReady())
		}
		return nil
	case m.GetToken() != nil:
		token, err := l.tokens.Issue(identityOf(h.record.Service))
		if err != nil {
			return status.Error(codes.ResourceExhausted, err.Error())
		}
		return stream.Send(&tullev1.JoinResponse{Message: &tullev1.JoinResponse_Token{Token: token}})
	}
	return status.Error(codes.InvalidArgument, "unknown message; is this tulle of another version than the daemon?")
}

// enter gives a replica its place, and the lease of it: that of h ends as soon as
// somebody finds the replica dead.
func (l *leases) enter(reg *tullev1.Register) (*held, *discovery.Lease, error) {
	if reg == nil {
		return nil, nil, status.Error(codes.InvalidArgument, "the first message must be a Register")
	}
	start, ok := workload.StartTime(int(reg.GetPid()))
	if !ok {
		return nil, nil, status.Errorf(codes.InvalidArgument, "no process %d here; tulle run has to share the daemon's process namespace", reg.GetPid())
	}
	l.buryDeadBefore(reg) // who is started again at once finds name and ports free
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return nil, nil, status.Error(codes.FailedPrecondition, "the mesh is going down; bring it back with: tulle up")
	}
	h := &held{status: &tullev1.Status{}, stop: make(chan struct{}), gone: make(chan struct{})}
	h.record = record{
		Service: reg.GetService(), Strict: reg.GetStrict(), Remove: reg.GetRemove(), OnHost: reg.GetHostNetwork(), Command: reg.GetCommand(),
		Pid: int(reg.GetPid()), PidStart: start, Started: time.Now().Unix(),
	}
	// It may have been killed since. Who is found dead is buried, so this keeps its
	// place from being taken over meanwhile, and from being given up twice.
	if !h.record.alive() {
		return nil, nil, status.Errorf(codes.InvalidArgument, "process %d has ended", h.record.Pid)
	}
	for _, p := range reg.GetPorts() {
		if p == 0 || p > 65535 {
			return nil, nil, status.Errorf(codes.InvalidArgument, "port %d: must be 1 to 65535", p)
		}
		h.record.Ports = append(h.record.Ports, uint16(p))
	}
	if err := l.checkHostNetworkLocked(&h.record, reg.GetReplica()); err != nil {
		return nil, nil, err
	}
	before := l.replicas[reg.GetReplica()]
	if before != nil && !before.record.Exited {
		if before.record.Pid != h.record.Pid || before.record.PidStart != start {
			return nil, nil, status.Errorf(codes.AlreadyExists, "replica %q belongs to process %d", reg.GetReplica(), before.record.Pid)
		}
		h.record.Started, h.record.VIP4, h.record.VIP6 = before.record.Started, before.record.VIP4, before.record.VIP6
		h.asked, h.stop, h.gone = before.asked, before.stop, before.gone
	}
	if err := l.joinLocked(h, reg.GetAdd(), reg.GetReplica(), reg.GetAddress4(), reg.GetAddress6()); err != nil {
		return nil, nil, joinStatus(err)
	}
	if !reg.GetAdd() && reg.GetReplica() == "" {
		l.forgetLocked(func(o *held) bool { return o.record.Service == h.record.Service })
	}
	if err := h.record.save(l.run); err != nil {
		h.lease.Leave()
		return nil, nil, status.Error(codes.Internal, roomFor(fmt.Errorf("write the replica's state: %w", err), l.run).Error())
	}
	l.replicas[h.record.Replica] = h
	return h, h.lease, nil
}

// checkHostNetworkLocked refuses a record that cannot be in the host's network:
// its ports are everybody's there. rejoining is the replica's name, if it has one.
func (l *leases) checkHostNetworkLocked(r *record, rejoining string) error {
	if !r.OnHost {
		return nil
	}
	if l.hostNetwork != nil {
		return status.Error(codes.FailedPrecondition, l.hostNetwork.Error())
	}
	for _, other := range l.replicas {
		o := &other.record
		if !o.OnHost || o.Exited || o.Replica == rejoining {
			continue
		}
		for _, port := range r.Ports {
			if slices.Contains(o.Ports, port) {
				return status.Errorf(codes.AlreadyExists, "port %d of this host is %s's; choose another, or type: tulle stop %s", port, o.Replica, o.Service)
			}
		}
	}
	return nil
}

func joinStatus(err error) error {
	if errors.Is(err, discovery.ErrNameTaken) {
		return status.Error(codes.AlreadyExists, err.Error())
	}
	return status.Error(codes.InvalidArgument, err.Error())
}

// joinLocked takes name and addresses from discovery.
func (l *leases) joinLocked(h *held, add bool, replica, address4, address6 string) error {
	req := discovery.JoinRequest{
		Service: h.record.Service, Ports: h.record.Ports, Strict: h.record.Strict, Add: add, Replica: replica,
		VIP4: h.record.VIP4, VIP6: h.record.VIP6,
	}
	for _, a := range []struct {
		text string
		into *netip.Addr
	}{{address4, &req.Addr4}, {address6, &req.Addr6}} {
		if a.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(a.text)
		if err != nil {
			return err
		}
		*a.into = p.Addr()
	}
	lease, err := l.state.Join(req)
	if err != nil {
		return err
	}
	h.lease = lease
	h.record.Replica = lease.Replica.Name
	h.record.Addr4, h.record.Addr6 = lease.Replica.Addr4, lease.Replica.Addr6
	h.record.VIP4, h.record.VIP6 = lease.Service.VIP4, lease.Service.VIP6
	return nil
}

// dyingTime is how long a process may take to end that was killed.
const dyingTime = 50 * time.Millisecond

// leave handles the end of a replica's stream.
func (l *leases) leave(h *held, lease *discovery.Lease) {
	if !h.status.GetExited() {
		// A process that was killed closes its sockets a moment before it is gone.
		waitGone(context.Background(), h.record.Pid, h.record.PidStart, dyingTime)
	}
	if l.leaveUnlessDead(h, lease) {
		l.bury(h)
	}
}

// leaveUnlessDead handles the end of a stream whose replica lives on, or has said
// goodbye; it tells whether the replica is to be buried.
func (l *leases) leaveUnlessDead(h *held, lease *discovery.Lease) (dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.replicas[h.record.Replica] != h || h.record.Exited || h.burying:
		// It has joined again by now, or is buried.
	case h.status.GetExited():
		l.endLocked(h, int(h.status.GetExitCode()))
	case h.record.alive():
		l.log.Warn("lost sight of a replica; it keeps its place until its process ends", "replica", h.record.Replica)
		h.lost = true
		lease.Lose()
	default:
		return true
	}
	return false
}

// codeKilled is the exit code of a replica whose `tulle run` was killed.
const codeKilled = 128 + int(unix.SIGKILL)

// bury ends a replica whose `tulle run` is gone without a goodbye. It returns once
// that is done, by whomever: nobody else waits for it, and nobody is sent to it meanwhile.
func (l *leases) bury(h *held) {
	l.mu.Lock()
	if h.record.Exited || h.burying {
		l.mu.Unlock()
		<-h.gone
		return
	}
	h.burying = true
	if h.lease != nil {
		h.lease.Lose() // the grace is longer than a sweep: until then nobody else gets its address
	}
	if !h.asked {
		l.log.Warn("a tulle run ended without a word; removing what is left of its replica", "replica", h.record.Replica)
	}
	left := h.record
	l.mu.Unlock()
	if err := l.sweep(&left); err != nil {
		l.log.Error("cannot remove all that is left of a replica", "replica", left.Replica, "reason", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	code := codeKilled
	if h.status.GetExited() { // its goodbye was on the way
		code = int(h.status.GetExitCode())
	}
	l.endLocked(h, code)
}

// buryAll buries at the same time.
func (l *leases) buryAll(dead []*held) {
	var wg sync.WaitGroup
	for _, h := range dead {
		wg.Go(func() { l.bury(h) })
	}
	wg.Wait()
}

// buryDeadBefore ends those whose end has not been noticed yet and whose name or
// ports somebody may want who asks to join, which is a process that lives.
func (l *leases) buryDeadBefore(reg *tullev1.Register) {
	l.buryAll(l.dead(func(h *held) bool {
		r := &h.record
		return r.Pid != int(reg.GetPid()) && (r.OnHost && reg.GetHostNetwork() ||
			strings.HasPrefix(r.Replica, reg.GetService()) || strings.HasPrefix(reg.GetService(), r.Service))
	}))
}

// dead returns those whose process is gone, as of now: who says goodbye while they
// are swept up is none of them.
func (l *leases) dead(which func(*held) bool) (dead []*held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.replicas {
		if !h.record.Exited && which(h) && !h.record.alive() {
			dead = append(dead, h)
		}
	}
	return dead
}

// mostDeparted is how many of those that left no trace are remembered.
const mostDeparted = 256

// departed is one of them.
type departed struct{ service, replica, state string }

// endLocked gives the replica's place up, and keeps the record for ps unless
// nobody wants it: --rm, or it never got as far as running.
func (l *leases) endLocked(h *held, code int) {
	if h.lease != nil {
		h.lease.Leave()
		h.lease = nil
	}
	h.lost, h.burying = false, false
	h.record.Exited, h.record.ExitCode = true, code
	var err error
	if neverRan := h.status.GetCommandPid() == 0 && code == workload.CodeOwn; h.record.Remove || neverRan {
		delete(l.replicas, h.record.Replica)
		err = h.record.erase(l.run)
		l.departed = append(l.departed[max(len(l.departed)-mostDeparted+1, 0):], departed{h.record.Service, h.record.Replica, h.state()})
	} else {
		err = h.record.save(l.run)
	}
	if err != nil {
		l.log.Error("cannot write a replica's end down", "replica", h.record.Replica, "reason", err)
	}
	close(h.gone)
}

// forgetLocked erases replicas that have exited.
func (l *leases) forgetLocked(which func(*held) bool) {
	for name, h := range l.replicas {
		if h.record.Exited && which(h) {
			delete(l.replicas, name)
			_ = h.record.erase(l.run)
		}
	}
}

// adopt takes over the replicas that an earlier daemon left.
func (l *leases) adopt(records []*record) {
	l.adoptLiving(records)
	l.buryAll(l.dead(func(*held) bool { return true }))
}

func (l *leases) adoptLiving(records []*record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range records {
		h := &held{record: *r, adopted: time.Now(), status: &tullev1.Status{}, stop: make(chan struct{}), gone: make(chan struct{})}
		l.replicas[r.Replica] = h
		switch {
		case r.Exited:
			close(h.gone)
		case r.alive():
			h.lost = true
			p4, p6 := addressText(r.Addr4), addressText(r.Addr6)
			if err := l.joinLocked(h, true, r.Replica, p4, p6); err != nil {
				l.log.Error("cannot keep a replica's place", "replica", r.Replica, "reason", err)
				continue
			}
			h.lease.Lose()
		}
	}
}

// addressText spells an address as joinLocked reads it.
func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}

// watchLost ends lost replicas whose process is gone, until ctx ends.
func (l *leases) watchLost(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		l.buryAll(l.dead(func(h *held) bool { return h.lost }))
	}
}

// List implements tullev1.HostServer.
func (l *leases) List(context.Context, *tullev1.ListRequest) (*tullev1.ListResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list tullev1.ListResponse
	for _, h := range l.replicas {
		list.Workloads = append(list.Workloads, l.describe(h))
	}
	slices.SortFunc(list.Workloads, func(a, b *tullev1.Workload) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(len(a.Replica), len(b.Replica)), cmp.Compare(a.Replica, b.Replica))
	})
	for _, s := range l.state.Load().Services() {
		list.Services = append(list.Services, describeService(s))
	}
	return &list, nil
}

func (l *leases) describe(h *held) *tullev1.Workload {
	w := &tullev1.Workload{
		Replica: h.record.Replica, Service: h.record.Service, Ports: widen(h.record.Ports),
		Address4: text(h.record.Addr4), Address6: text(h.record.Addr6),
		State: h.state(), StartedUnix: h.record.Started,
		Pid: h.status.GetCommandPid(), Command: h.record.Command,
		Identity: identityOf(h.record.Service).String(),
	}
	if log := filepath.Join(WorkloadDir(l.run, h.record.Replica), "log"); exists(log) {
		w.Log = log
	}
	return w
}

// identityOf names who the replicas of a service are.
func identityOf(service string) mesh.ID {
	return mesh.ID{TrustDomain: TrustDomain, Namespace: "default", Account: service}
}

func describeService(s *discovery.Service) *tullev1.Service {
	d := &tullev1.Service{
		Name: s.Name, Address4: text(s.VIP4), Address6: text(s.VIP6), Ports: widen(s.Ports), Source: s.Source.String(),
	}
	if s.Protocol != mesh.Unknown {
		d.Protocol = s.Protocol.String()
	}
	for _, r := range s.Replicas {
		d.Endpoints = append(d.Endpoints, text(r.Addr4))
	}
	for _, e := range s.Endpoints {
		if e.Port == 0 {
			d.Endpoints = append(d.Endpoints, text(e.Addr))
		} else {
			d.Endpoints = append(d.Endpoints, netip.AddrPortFrom(e.Addr, e.Port).String())
		}
	}
	return d
}

func widen(ports []uint16) []uint32 {
	var wide []uint32
	for _, p := range ports {
		wide = append(wide, uint32(p))
	}
	return wide
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Stop implements tullev1.HostServer; it returns once all have ended.
func (l *leases) Stop(ctx context.Context, req *tullev1.StopRequest) (*tullev1.StopResponse, error) {
	asked := l.ask(func(h *held) bool { return h.record.Service == req.GetName() || h.record.Replica == req.GetName() })
	if len(asked) == 0 {
		return nil, status.Errorf(codes.NotFound, "no workload %q is running; see: tulle ps", req.GetName())
	}
	var response tullev1.StopResponse
	for _, h := range asked {
		select {
		case <-h.gone:
			response.Stopped = append(response.Stopped, h.record.Replica)
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	slices.Sort(response.Stopped)
	return &response, nil
}

// ask asks replicas to end. Those that are lost are asked by a signal, which
// their `tulle run` hands on.
func (l *leases) ask(which func(*held) bool) []*held {
	l.mu.Lock()
	defer l.mu.Unlock()
	var asked []*held
	for _, h := range l.replicas {
		if h.record.Exited || !which(h) {
			continue
		}
		asked = append(asked, h)
		if h.asked {
			continue
		}
		h.asked = true
		close(h.stop)
		if h.lost && h.record.alive() {
			_ = unix.Kill(h.record.Pid, unix.SIGTERM)
		}
	}
	return asked
}

// running counts the replicas that have not ended.
func (l *leases) running() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, h := range l.replicas {
		if !h.record.Exited {
			n++
		}
	}
	return n
}

// close lets no more replicas in, and ends those that are there; after the
// timeout by force.
func (l *leases) close(timeout time.Duration) error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var errs []error
	for _, h := range l.ask(func(*held) bool { return true }) {
		select {
		case <-h.gone:
			continue
		case <-ctx.Done():
		}
		if err := h.record.kill(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", h.record.Replica, err))
		}
	}
	return errors.Join(errs...)
}
