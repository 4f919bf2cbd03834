package workload

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/tulle-mesh/tulle/cmd/tulle/dns"
	"github.com/tulle-mesh/tulle/cmd/tulle/network"
)

// standInAddr is where names are answered while the daemon is away. At other
// times nobody listens there, so that a workload may be a name server itself.
var standInAddr = netip.MustParseAddrPort("127.0.0.84:53")

// standIn answers a workload's DNS questions for as long as the daemon is away,
// with the names it knew last. Its methods may be called by many goroutines.
type standIn struct {
	names     dns.Names
	domain    string
	addr      netip.AddrPort // where it serves
	upstreams func() []netip.AddrPort
	conf      resolvConf

	mu     sync.Mutex
	thread *network.Thread // in the workload's namespace; nil: not yet, or no more
	away   bool
	stop   func() // nil: not serving
}

// attach lets it serve from now on; detach must be called before the thread is closed.
func (s *standIn) attach(thread *network.Thread, conf resolvConf) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.thread, s.conf = thread, conf
	s.adjustLocked()
}

func (s *standIn) detach() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.thread = nil
	s.adjustLocked()
}

// set tells whether the daemon is away.
func (s *standIn) set(away bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = away
	s.adjustLocked()
}

func (s *standIn) adjustLocked() {
	wanted := s.away && s.thread != nil && s.names != nil
	switch {
	case wanted && s.stop == nil:
		var server *dns.Server
		err := s.thread.Do(func() (err error) {
			server, err = dns.Listen(dns.Config{
				Listen: []netip.AddrPort{s.addr}, Domain: s.domain, Names: s.names, Upstreams: s.upstreams,
			})
			return err
		})
		if err != nil {
			return // the workload has the port: its names are its own business
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = server.Run(ctx) // ends with ctx, and in no other way
		}()
		s.stop = func() { cancel(); <-ended }
		s.conf.prefer(true)
	case !wanted && s.stop != nil:
		s.conf.prefer(false)
		s.stop()
		s.stop = nil
	}
}

// resolvConf is the workload's file of that name. The stand-in is always in
// it, last. While the daemon is away it comes first: the kernel answers for a closed
// port once a second at most (icmp_ratelimit), so that a resolver which tries
// the daemon first would mostly wait for its time-out.
type resolvConf struct {
	path           string
	usual, standIn []byte // of the same length
}

// newResolvConf writes the file.
func newResolvConf(path string, host dns.ResolvConf, servers []netip.Addr, standIn netip.Addr, domain string) (resolvConf, error) {
	c := resolvConf{
		path:    path,
		usual:   []byte(host.ForWorkload(append(slices.Clone(servers), standIn), domain)),
		standIn: []byte(host.ForWorkload(append([]netip.Addr{standIn}, servers...), domain)),
	}
	return c, os.WriteFile(path, c.usual, 0o644)
}

// prefer rewrites the file in place, since it is mounted by its inode. C
// libraries look at its time before each query; what cannot be written stays
// usable as it is.
func (c resolvConf) prefer(standIn bool) {
	f, err := os.OpenFile(c.path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	content := c.usual
	if standIn {
		content = c.standIn
	}
	_, _ = f.WriteAt(content, 0)
	_ = f.Close()
}
