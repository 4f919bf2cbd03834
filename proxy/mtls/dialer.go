package mtls

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// raceEvery is how long a handshake is waited for before the next one begins
	// beside it (RFC 8305, section 5).
	raceEvery = 250 * time.Millisecond
	// connectWait bounds one handshake, and so how many there are at a time.
	connectWait = 1500 * time.Millisecond
	// raceWait bounds them all. It is shorter than what gRPC waits, whose error says less.
	raceWait = 3900 * time.Millisecond
)

// dialer connects to the control plane by TCP, without waiting for who is silent.
// Where a node still leads its service's address to a replica that is gone, all
// that a socket sends again goes there, too: only a new one gets elsewhere. So a
// name's addresses take turns until one answers, also where there is but one.
//
// It may be used by several goroutines at once; the zero value is ready.
type dialer struct {
	lookup func(ctx context.Context, host string) ([]string, error) // nil: the system's resolver
	open   func(ctx context.Context, addr string) (net.Conn, error) // nil: TCP

	mu   sync.Mutex
	last string // address that answered last: it is asked first
}

// connect connects to addr, "host:port". The error is that of the last handshake
// once all addresses have refused, or raceWait is over.
func (d *dialer) connect(ctx context.Context, addr string) (net.Conn, error) {
	addrs, err := d.addresses(ctx, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, raceWait)
	defer cancel()
	conn, winner, err := d.race(ctx, addrs)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.last = winner
	d.mu.Unlock()
	return conn, nil
}

// addresses resolves addr; there is at least one.
func (d *dialer) addresses(ctx context.Context, addr string) ([]string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	lookup := d.lookup
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	hosts, err := lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	addrs := make([]string, 0, len(hosts))
	for _, host := range hosts {
		addrs = append(addrs, net.JoinHostPort(host, port))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(addrs, d.last); i > 0 {
		addrs = slices.Insert(slices.Delete(addrs, i, i+1), 0, d.last)
	}
	return addrs, nil
}

// attempt is how a handshake has ended.
type attempt struct {
	addr string
	conn net.Conn // nil: err
	err  error
}

// race begins a handshake every raceEvery, and whenever an address refuses that
// leaves others to be asked. The first that succeeds is returned, with its
// address; all others have ended by then.
func (d *dialer) race(ctx context.Context, addrs []string) (net.Conn, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan attempt)
	begun, pending := 0, 0
	begin := func() {
		addr := addrs[begun%len(addrs)]
		begun, pending = begun+1, pending+1
		go func() {
			conn, err := d.dial(ctx, addr)
			ended <- attempt{addr, conn, err}
		}()
	}
	defer func() {
		cancel()
		for ; pending > 0; pending-- {
			if late := <-ended; late.err == nil {
				_ = late.conn.Close()
			}
		}
	}()
	again := time.NewTicker(raceEvery)
	defer again.Stop()
	begin()
	for {
		select {
		case <-again.C:
			begin()
		case a := <-ended:
			pending--
			switch {
			case a.err == nil:
				return a.conn, a.addr, nil
			case begun < len(addrs) && ctx.Err() == nil:
				begin()
				again.Reset(raceEvery)
			case pending == 0:
				return nil, "", a.err
			}
		}
	}
}

func (d *dialer) dial(ctx context.Context, addr string) (net.Conn, error) {
	if d.open != nil {
		return d.open(ctx, addr)
	}
	tcp := net.Dialer{Timeout: connectWait}
	return tcp.DialContext(ctx, "tcp", addr)
}
