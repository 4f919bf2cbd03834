package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tulle-mesh/tulle/mesh"
)

// defaultGrace is how long a replica whose lease was lost may come back and
// find its name and addresses: a restart of the control plane takes seconds.
const defaultGrace = 30 * time.Second

// ErrNameTaken is wrapped by the error of a Join under a name somebody has.
var ErrNameTaken = errors.New("name taken")

// Config is what NewState needs.
type Config struct {
	TrustDomain string // of the replicas' identities
	Namespace   string // of every service; "": "default"
	// Where addresses come from. A family whose two prefixes are zero is not
	// used; without any, nobody can join: all there is comes from a cluster.
	Replicas4, Replicas6 netip.Prefix
	VIPs4, VIPs6         netip.Prefix
	Reserved             []netip.Addr     // never handed out: the gateway's
	Grace                time.Duration    // from a lost lease to the replica's end; 0: 30 s
	Now                  func() time.Time // the clock; nil: time.Now
}

// Halves cuts a network in two: replicas live in the low half, services in the
// high one.
func Halves(network netip.Prefix) (low, high netip.Prefix) {
	network = network.Masked()
	bits := network.Bits() + 1
	low = netip.PrefixFrom(network.Addr(), bits)
	b := network.Addr().AsSlice()
	b[network.Bits()/8] |= 0x80 >> (network.Bits() % 8)
	addr, _ := netip.AddrFromSlice(b) // the length of an address
	return low, netip.PrefixFrom(addr, bits)
}

// Validate reports what is wrong with the Config.
func (c Config) Validate() error {
	errs := []error{mesh.ID{TrustDomain: c.TrustDomain, Namespace: c.Namespace, Account: "a"}.Validate()}
	if c.Replicas4.IsValid() != c.VIPs4.IsValid() || c.Replicas6.IsValid() != c.VIPs6.IsValid() {
		errs = append(errs, errors.New("a family has a network for replicas or for services only"))
	}
	return errors.Join(errs...)
}

// State is the one writer of what is known. Many goroutines may use it at once.
//
// A replica's life:
//
//	Join -> held
//	held  --Lose-->        lost
//	lost  --Join again-->  held, under another Lease
//	lost  --grace over-->  gone
//	held or lost --Leave-> gone
type State struct {
	config   Config
	snapshot mesh.Latest[Snapshot]
	wake     chan struct{} // tells Run of a new deadline

	mu       sync.Mutex // guards what follows, and every change of the snapshot
	replicas family
	vips     family
	leases   map[string]*lease // by replica
}

// family is a pool for each address family; one may be nil.
type family struct{ v4, v6 *Pool }

type lease struct {
	holder   *Lease
	deadline time.Time // when lost: its end; zero while held
}

// NewState returns a State without services.
func NewState(config Config) (*State, error) {
	if config.Namespace == "" {
		config.Namespace = "default"
	}
	if config.Grace == 0 {
		config.Grace = defaultGrace
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if err := config.Validate(); err != nil {
		return nil, err
	}
	s := &State{config: config, wake: make(chan struct{}, 1), leases: make(map[string]*lease)}
	var errs []error
	pool := func(prefix netip.Prefix, flag string) *Pool {
		if !prefix.IsValid() {
			return nil
		}
		p, err := NewPool(prefix, flag, config.Reserved...)
		errs = append(errs, err)
		return p
	}
	s.replicas = family{v4: pool(config.Replicas4, "--network4"), v6: pool(config.Replicas6, "--network6")}
	s.vips = family{v4: pool(config.VIPs4, "--network4"), v6: pool(config.VIPs6, "--network6")}
	s.snapshot.Store(newDraft(&Snapshot{names: map[string]target{}, addrs: map[netip.Addr]target{}, listed: map[netip.AddrPort]target{}}).Snapshot)
	return s, errors.Join(errs...)
}

// Load returns what is known now.
func (s *State) Load() *Snapshot { return s.snapshot.Load() }

// Watch returns what is known now and a channel that is closed once more is known.
func (s *State) Watch() (*Snapshot, <-chan struct{}) { return s.snapshot.Watch() }

// JoinRequest describes a replica that comes, or comes back.
type JoinRequest struct {
	Service  string
	Ports    []uint16
	Protocol mesh.Protocol // Unknown: not declared
	Strict   bool
	Add      bool // join a service that has replicas

	// To come back: what the replica has already. After a restart of the control
	// plane it is the replicas that remember.
	Replica      string
	Addr4, Addr6 netip.Addr
	VIP4, VIP6   netip.Addr // of its service, if that is not known any more
}

// Lease is a replica's place in the mesh, held until Leave or Lose. Its methods
// do nothing once the replica has come back under another Lease.
type Lease struct {
	Service *Service // as of the Join
	Replica Replica  // as of the Join

	state *State
}

// Join adds a replica, or lets one come back. Errors about the name wrap
// ErrNameTaken.
func (s *State) Join(req JoinRequest) (*Lease, error) {
	if err := mesh.CheckName(req.Service); err != nil {
		return nil, fmt.Errorf("service %w", err)
	}
	if slices.Contains(req.Ports, 0) {
		return nil, fmt.Errorf("service %q: port 0: must be 1 to 65535", req.Service)
	}
	if s.replicas == (family{}) {
		return nil, fmt.Errorf("service %q: there is no network for replicas", req.Service)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	service, err := s.joinedServiceLocked(req)
	if err != nil {
		return nil, err
	}
	number, err := s.numberLocked(req)
	if err != nil {
		return nil, err
	}
	replica := Replica{Name: replicaName(req.Service, number), Strict: req.Strict, number: number}
	if err := mesh.CheckName(replica.Name); err != nil {
		return nil, fmt.Errorf("replica %w", err)
	}
	if i := slices.IndexFunc(service.Replicas, func(r Replica) bool { return r.Name == replica.Name }); i >= 0 {
		known := service.Replicas[i]
		if err := s.checkReturnLocked(known, req); err != nil {
			return nil, err
		}
		// As it was, until it says otherwise.
		replica.Ready, replica.Addr4, replica.Addr6 = known.Ready, known.Addr4, known.Addr6
		service.Replicas[i] = replica
	} else {
		if err := s.addressLocked(service, &replica, req); err != nil {
			return nil, err
		}
		service.Replicas = append(service.Replicas, replica)
		slices.SortFunc(service.Replicas, func(a, b Replica) int { return a.number - b.number })
	}
	s.putLocked(service)
	l := &Lease{Service: service, Replica: replica, state: s}
	s.leases[replica.Name] = &lease{holder: l}
	return l, nil
}

func replicaName(service string, number int) string {
	return service + "-" + strconv.Itoa(number)
}

// joinedServiceLocked returns a copy of the service to join, or a new one.
func (s *State) joinedServiceLocked(req JoinRequest) (*Service, error) {
	t, ok := s.Load().names[req.Service]
	switch {
	case !ok:
		return &Service{
			Name:      req.Service,
			VIP4:      req.VIP4.Unmap(),
			VIP6:      req.VIP6,
			Namespace: s.config.Namespace,
			Source:    Run,
			ID:        mesh.ID{TrustDomain: s.config.TrustDomain, Namespace: s.config.Namespace, Account: req.Service},
			Ports:     mergePorts(nil, req.Ports),
			Protocol:  req.Protocol,
		}, nil
	case t.replica != nil:
		return nil, fmt.Errorf("service %q: %w by a replica of service %q; choose another name", req.Service, ErrNameTaken, t.service.Name)
	case t.service.Source == Catalog:
		return nil, fmt.Errorf("service %q: %w by the catalog file; choose another name, or remove it from the file", req.Service, ErrNameTaken)
	case !req.Add && req.Replica == "" && s.heldLocked(t.service):
		return nil, fmt.Errorf("service %q: %w, it is running; choose another name, type: tulle stop %s, or add replicas to it with --add", req.Service, ErrNameTaken, req.Service)
	}
	service := *t.service
	service.Replicas = slices.Clone(service.Replicas)
	service.Ports = mergePorts(service.Ports, req.Ports)
	if req.Protocol != mesh.Unknown {
		service.Protocol = req.Protocol
	}
	return &service, nil
}

func (s *State) heldLocked(service *Service) bool {
	return slices.ContainsFunc(service.Replicas, func(r Replica) bool { return !r.Lost })
}

func mergePorts(a, b []uint16) []uint16 {
	ports := slices.Concat(a, b)
	slices.Sort(ports)
	return slices.Compact(ports)
}

// numberLocked returns the N of SERVICE-N: the one asked for, or the smallest
// free one.
func (s *State) numberLocked(req JoinRequest) (int, error) {
	names := s.Load().names
	if req.Replica == "" {
		for n := 1; ; n++ {
			if _, taken := names[replicaName(req.Service, n)]; !taken {
				return n, nil
			}
		}
	}
	digits, ok := strings.CutPrefix(req.Replica, req.Service+"-")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n < 1 || replicaName(req.Service, n) != req.Replica {
		return 0, fmt.Errorf("replica %q: cannot be one of service %q", req.Replica, req.Service)
	}
	if t, taken := names[req.Replica]; taken && (t.replica == nil || t.service.Name != req.Service) {
		return 0, fmt.Errorf("replica %q: %w by service %q", req.Replica, ErrNameTaken, t.service.Name)
	}
	return n, nil
}

// addressLocked gives the replica (nil: none) its addresses, and the service its
// own ones if it has none yet. On an error nothing is taken.
func (s *State) addressLocked(service *Service, replica *Replica, req JoinRequest) (err error) {
	var undo []func()
	defer func() {
		if err != nil {
			for _, f := range undo {
				f()
			}
		}
	}()
	take := func(p *Pool, owner string, wanted netip.Addr, into *netip.Addr) {
		if err != nil || p == nil {
			return
		}
		held := p.Holder(wanted) == owner
		if wanted.IsValid() {
			err = p.Claim(owner, wanted)
		} else {
			wanted, err = p.Take(owner)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", owner, err)
			return
		}
		*into = wanted
		if !held {
			undo = append(undo, func() { p.Free(wanted) })
		}
	}
	take(s.vips.v4, service.Name, service.VIP4, &service.VIP4)
	take(s.vips.v6, service.Name, service.VIP6, &service.VIP6)
	if replica == nil {
		return err
	}
	take(s.replicas.v4, replica.Name, req.Addr4.Unmap(), &replica.Addr4)
	take(s.replicas.v6, replica.Name, req.Addr6, &replica.Addr6)
	return err
}

// checkReturnLocked tells a replica that comes back from another one of the
// same number, which a control plane that had lost its memory let in meanwhile.
func (s *State) checkReturnLocked(known Replica, req JoinRequest) error {
	if (req.Addr4.IsValid() && req.Addr4.Unmap() != known.Addr4) || (req.Addr6.IsValid() && req.Addr6 != known.Addr6) {
		return fmt.Errorf("replica %q: %w by another one; stop this one and run it again", known.Name, ErrNameTaken)
	}
	return nil
}

func (s *State) putLocked(service *Service) {
	d := newDraft(s.Load())
	d.put(service)
	s.snapshot.Store(d.Snapshot)
}

// SetReady tells whether the replica accepts connections.
func (l *Lease) SetReady(ready bool) {
	l.state.mu.Lock()
	defer l.state.mu.Unlock()
	if current := l.currentLocked(); current != nil && current.deadline.IsZero() {
		l.state.changeLocked(l.Replica.Name, func(r *Replica) { r.Ready = ready })
	}
}

// Lose ends the lease without a goodbye: the replica is sent nothing from now
// on, and is gone after the grace unless it joins again. Of a lost one, the grace
// begins anew.
func (l *Lease) Lose() {
	s := l.state
	s.mu.Lock()
	defer s.mu.Unlock()
	current := l.currentLocked()
	if current == nil {
		return
	}
	current.deadline = s.config.Now().Add(s.config.Grace)
	s.changeLocked(l.Replica.Name, func(r *Replica) { r.Lost = true })
	select {
	case s.wake <- struct{}{}:
	default: // Run will look anyway
	}
}

// Leave ends the lease and the replica; of a lost lease, without waiting for
// the grace.
func (l *Lease) Leave() {
	l.state.mu.Lock()
	defer l.state.mu.Unlock()
	if l.currentLocked() != nil {
		l.state.removeLocked(l.Replica.Name)
	}
}

// currentLocked returns the state of this Lease, nil if it has ended or the
// replica has come back under another one.
func (l *Lease) currentLocked() *lease {
	if current := l.state.leases[l.Replica.Name]; current != nil && current.holder == l {
		return current
	}
	return nil
}

func (s *State) changeLocked(name string, change func(*Replica)) {
	old, service := s.Load().Replica(name)
	replica := *old
	change(&replica)
	if replica == *old {
		return
	}
	changed := *service
	changed.Replicas = slices.Clone(service.Replicas)
	for i := range changed.Replicas {
		if changed.Replicas[i].Name == name {
			changed.Replicas[i] = replica
		}
	}
	s.putLocked(&changed)
}

func (s *State) removeLocked(name string) {
	replica, service := s.Load().Replica(name)
	delete(s.leases, name)
	s.replicas.free(replica.Addr4, replica.Addr6)
	if len(service.Replicas) == 1 {
		s.vips.free(service.VIP4, service.VIP6)
		d := newDraft(s.Load())
		d.drop(service.Name)
		s.snapshot.Store(d.Snapshot)
		return
	}
	changed := *service
	changed.Replicas = slices.DeleteFunc(slices.Clone(service.Replicas), func(r Replica) bool { return r.Name == name })
	s.putLocked(&changed)
}

func (f family) free(addr4, addr6 netip.Addr) {
	if f.v4 != nil {
		f.v4.Free(addr4)
	}
	if f.v6 != nil {
		f.v6.Free(addr6)
	}
}

// Expire removes the replicas whose grace is over and returns when to call it
// next; the zero Time if no lease is lost.
func (s *State) Expire(now time.Time) (next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, l := range s.leases {
		switch {
		case l.deadline.IsZero():
		case !now.Before(l.deadline):
			s.removeLocked(name)
		case next.IsZero() || l.deadline.Before(next):
			next = l.deadline
		}
	}
	return next
}

// Run removes lost replicas as their grace ends, until ctx does.
func (s *State) Run(ctx context.Context) error {
	for {
		now := s.config.Now()
		var due <-chan time.Time
		if next := s.Expire(now); !next.IsZero() {
			due = time.After(next.Sub(now))
		}
		select {
		case <-due:
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
	}
}
